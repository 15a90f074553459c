"""All settings: their sections, the file and the flags that change them."""
