"""Many rows through a network in the memory of a few, and their gradient."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def in_chunks(
    say: Callable, rows, size: int, variables: Sequence[tf.Variable], *, fill, width: int
):
    """What a network says of rows, chunk by chunk: nothing is kept of a chunk but what came
    out, and the backward pass takes each through the network again.

    Args:
      say: Gives `[size, width]` of a chunk `[size, m]` and its number, which is all that
        its dropout may depend on.
      rows: `[L, m]`.
      size: Rows of a chunk.
      variables: What gets a gradient.
      fill: Of the rows that make the last chunk whole.
      width: Of what is said.

    Returns:
      `[L, width]`.

    References:
      - GradCache: Gao et al., 2021, arXiv:2101.06983, section 3.
    """
    count, length = tf.shape(rows)[0], rows.shape[1] or tf.shape(rows)[1]
    number = -(-count // size)
    rows = tf.pad(rows, [[0, number * size - count], [0, 0]], constant_values=fill)
    chunks = tf.reshape(rows, [number, size, length])

    @tf.custom_gradient
    def told(chunks):
        found = tf.map_fn(
            lambda given: say(*given),
            (chunks, tf.range(number)),
            fn_output_signature=tf.TensorSpec([size, width], tf.float32),
            parallel_iterations=1,
        )

        def gradient(upstream, variables=()):
            wanted = [v for v in variables if v.ref() in trained]
            sums = [tf.zeros(v.shape) for v in wanted]
            _, *sums = tf.while_loop(
                lambda place, *_: place < number,
                lambda place, *sums: (place + 1, *_more(place, sums, wanted, upstream)),
                (0, *sums),
                parallel_iterations=1,
            )
            found = {v.ref(): g for v, g in zip(wanted, sums, strict=True)}
            return None, [found.get(v.ref()) for v in variables]

        def _more(place, sums, wanted, upstream):
            with tf.GradientTape() as tape:
                again = say(chunks[place], place)
            more = tape.gradient(again, wanted, upstream[place], "zero")
            return [a + tf.convert_to_tensor(b) for a, b in zip(sums, more, strict=True)]

        return found, gradient

    trained = {variable.ref() for variable in variables}
    return tf.reshape(told(chunks), [-1, width])[:count]
