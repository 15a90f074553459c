"""The files of serving/, read by the programs they are for or by their schemas."""
