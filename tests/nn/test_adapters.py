"""SLoPe: the double-pruned backward pass and late low-rank adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import export, nn, recipes
from figs_jax.core import Flow, tree
from figs_jax.models import decode
from figs_jax.train.loop import train
from figs_jax.train.state import TrainState, train_step
from figs_jax.train.workdir import finished_model
from tests.models.families import create

pytestmark = pytest.mark.standard_promotion
TOTAL, START = 10, 6


class Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.fc1 = nnx.Linear(8, 4, rngs=rngs)
    self.fc2 = nnx.Linear(4, 8, rngs=rngs)

  def __call__(self, x):
    return self.fc2(jnp.tanh(self.fc1(x)))


def slope(**options):
  return recipes.create("slope", "2:4", TOTAL, lazy=0.4, rank=2, **options)


def along_rows(w, axis):
  """The 2 largest |w| of every 4 along an axis, the first ones of equals."""
  moved = np.moveaxis(w, axis, -1)
  groups = moved.reshape(*moved.shape[:-1], -1, 4)
  order = np.argsort(-np.abs(groups), -1, kind="stable")
  mask = np.zeros(groups.shape, bool)
  np.put_along_axis(mask, order[..., :2], True, -1)
  return np.moveaxis(mask.reshape(moved.shape), -1, axis)


def reference(params, x, dy):
  """Output and gradients by hand (2405.16325, eq. 4-6, with adapters)."""
  w = {k: np.float64(v) for k, v in tree.flatten(params).items()}
  x, dy = np.float64(x), np.float64(dy)
  forward, backward = {}, {}
  for name in ("fc1", "fc2"):
    kernel = w[f"{name}/kernel"]
    forward[name] = np.where(along_rows(kernel, 0), kernel, 0)  # W^R
    again = along_rows(forward[name], 1)
    backward[name] = np.where(again, forward[name], 0)  # W^{R,C}

  def layer(name, x):
    low = x @ w[f"{name}/adapter/lora_a"]
    out = x @ forward[name] + low @ w[f"{name}/adapter/lora_b"]
    return out + w[f"{name}/bias"]

  def gradients(name, x, dy):
    a, b = w[f"{name}/adapter/lora_a"], w[f"{name}/adapter/lora_b"]
    return dy @ backward[name].T + dy @ b.T @ a.T, {
      f"{name}/kernel": np.where(forward[name] != 0, x.T @ dy, 0),
      f"{name}/bias": dy.sum(0),
      f"{name}/adapter/lora_a": x.T @ (dy @ b.T),
      f"{name}/adapter/lora_b": (x @ a).T @ dy,
    }

  h = np.tanh(layer("fc1", x))
  dh, grads = gradients("fc2", h, dy)
  dx, first = gradients("fc1", x, dh * (1 - h**2))
  return layer("fc2", h), dx, grads | first


def sparse_model():
  model = figs.sparsify(Net(), slope())
  for layer in (model.fc1, model.fc2):  # as if it had learned
    shape = layer.adapter.lora_b.shape
    layer.adapter.lora_b[...] = jax.random.normal(jax.random.key(1), shape)
  return model


def data(size=5):
  x, dy = (jax.random.normal(jax.random.key(i), (size, 8)) for i in (2, 3))
  return x, dy


def test_forward_and_backward_are_those_of_numpy():
  graphdef, params, masks, rest = nn.split(sparse_model())
  x, dy = data()

  def loss(params, x):
    return jnp.sum(nn.merge(graphdef, params, masks, 0.0, rest)(x) * dy)

  out, dx, grads = reference(params, x, dy)
  model = nn.merge(graphdef, params, masks, 0.0, rest)
  np.testing.assert_allclose(model(x), out, rtol=1e-5, atol=1e-6)
  got, got_x = jax.grad(loss, (0, 1))(params, x)
  np.testing.assert_allclose(got_x, dx, rtol=1e-4, atol=1e-5)
  for path, leaf in tree.flatten(got).items():
    np.testing.assert_allclose(
      leaf, grads[path], rtol=1e-4, atol=1e-5, err_msg=path
    )


def test_the_input_gradient_is_whole_in_a_dense_phase_and_without_the_flow():
  model, (x, dy) = figs.sparsify(Net(), "2:4").fc1, data()
  kernel = model.kernel[...]

  def dx(model):
    return jax.grad(lambda x: jnp.sum(model(x) * dy[:, :4]))(x)

  whole = dx(model)
  both = nn.with_flow(model, Flow("masked", double_pruned=True))
  assert not np.allclose(dx(both), whole, atol=1e-3)
  both.leak[...] = jnp.ones(())
  np.testing.assert_allclose(dx(both), dy[:, :4] @ kernel.T, atol=1e-6)


def test_neural_gradients_may_be_pruned_as_well():
  """The weight gradient is mvue's, the input gradient the double-pruned one."""
  model, (x, dy) = figs.sparsify(Net(), "2:4").fc1, data(8)
  flows = Flow("masked", double_pruned=True), None
  flows = flows[0], Flow("masked", double_pruned=True, mvue=figs.NM(1, 2))
  plain, pruned = (nn.with_flow(model, flow) for flow in flows)
  for each in (plain, pruned):
    each.train()
  np.testing.assert_array_equal(plain(x), pruned(x))
  dxs = [
    jax.grad(lambda x, net=net: jnp.sum(nnx.clone(net)(x) * dy[:, :4]))(x)
    for net in (plain, pruned)
  ]
  np.testing.assert_allclose(*dxs, rtol=1e-6)


def loss(model, x, key):
  return jnp.mean((model(x) - x) ** 2), {}


def test_adapters_start_late_and_at_zero():
  """Moments and weight decay stay away from them until then."""
  recipe = slope()
  model = figs.sparsify(Net(), recipe)
  x, _ = data()
  plain = figs.sparsify(Net(), "2:4")
  np.testing.assert_array_equal(model(x), plain(x))
  tx = recipe.transform(optax.adamw(0.1, weight_decay=0.5))
  state = TrainState.create(model, recipe, tx, loss=loss)
  first = jax.tree.map(np.asarray, state.params["fc1"]["adapter"])
  for step in range(TOTAL):
    now = jax.tree.map(np.asarray, state.params["fc1"]["adapter"])
    moved = [not np.array_equal(now[name], first[name]) for name in first]
    assert any(moved) == (step > START), step
    if step <= START:
      adam = jax.tree.leaves(
        state.opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState)
      )
      (adam,) = [s for s in adam if isinstance(s, optax.ScaleByAdamState)]
      assert not np.any(adam.nu["fc1"]["adapter"]["lora_b"])
    state, _ = train_step(state, x)
  net = state.finished()
  kernel = net.fc1.kernel[...]
  assert figs.is_nm(kernel, "2:4") and np.any(net.fc1.adapter.lora_b[...])
  mask = np.asarray(model.fc1.kernel_mask[...])  # that of the first weights
  assert not np.any(np.where(mask, 0, kernel))


def test_what_is_evaluated_is_what_is_exported(tmp_path):
  """Sparse kernel and factors; merged, they would be dense."""
  net = sparse_model()
  leaves, (x, _) = nn.masked_leaves(net), data()
  graphdef, params, masks, rest = nn.split(net)
  zeroed = {
    name: jax.tree.map(np.asarray, layer) for name, layer in params.items()
  }
  for name in ("fc1", "fc2"):
    zeroed[name]["kernel"] = np.where(
      masks[name]["kernel"], params[name]["kernel"], 0
    )
  path = tmp_path / "model.safetensors"
  export.write_packed(path, zeroed, leaves)
  back = export.read(path)
  assert set(back) == set(tree.flatten(params))
  low = back["fc1/adapter/lora_a"] @ back["fc1/adapter/lora_b"]
  assert figs.is_nm(back["fc1/kernel"], "2:4")
  assert not figs.is_nm(back["fc1/kernel"] + low, "2:4")
  params = jax.tree_util.tree_map_with_path(
    lambda keys, _: jnp.asarray(back[tree.path_str(keys)]), params
  )
  read = nn.merge(graphdef, params, masks, 0.0, rest)
  np.testing.assert_allclose(read(x), net(x), rtol=1e-6)


def test_a_layer_without_its_mask_keeps_its_adapter():
  """As exported programs have it, whose kernels have zeros of their own."""
  net, (x, _) = sparse_model(), data()
  wanted = net(x)
  for layer in (net.fc1, net.fc2):
    layer.kernel.set_value(layer.effective_kernel())
  dense = nn.sparsify(net, ".*: dense")
  assert not nn.masked_leaves(dense)
  np.testing.assert_allclose(dense(x), wanted, rtol=1e-6)


def test_decoding_has_the_adapters():
  model = create("gpt2", depth=1)
  model = nn.with_adapters(figs.sparsify(model, "ff: 1:4"), 2)
  for layer in (model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2):
    factor = layer.adapter.lora_b
    factor.set_value(3 * jax.random.normal(jax.random.key(1), factor.shape))
  model.eval()
  prompt = jnp.arange(3, 8)[None]
  new = decode.greedy(model, prompt, 3, eos=99)
  whole = model(jnp.concatenate([prompt, new], 1))
  np.testing.assert_array_equal(new, whole.argmax(-1)[:, 4:-1])
  plain = create("gpt2", depth=1)(jnp.concatenate([prompt, new], 1))
  assert (plain.argmax(-1)[:, 4:-1] != new).any()


class Movable(Net):
  movable_channels = (nn.Channels("", producers="fc1", consumer="fc2"),)


@pytest.mark.parametrize("rules", ["1:2", "fc2/kernel: 1:2"])
@pytest.mark.parametrize("factors", ["", ", fc2/adapter/lora_a/kernel: 1:2"])
def test_channels_move_with_their_factors(rules, factors):
  model = nn.with_adapters(figs.sparsify(Movable(), rules), 2)
  for layer in (model.fc1, model.fc2):
    if hasattr(layer, "adapter"):
      layer.adapter.lora_b[...] = 1 + layer.adapter.lora_b[...]
  if factors:
    kernels = "fc./kernel: 1:2" if rules == "1:2" else rules
    model = figs.sparsify(model, kernels + factors)
  x, _ = data()
  permuted, (entry,) = figs.permute_channels(model)
  assert entry.after > entry.before and not entry.obstacle
  # Of unmasked kernels: the mask of fc2 is another one in the new order.
  one, two = (nn.sparsify(m, ".*: dense") for m in (model, permuted))
  np.testing.assert_allclose(two(x), one(x), rtol=1e-5, atol=1e-6)
  if factors:
    masks = [m.fc2.adapter.lora_a.kernel_mask[...] for m in (model, permuted)]
    kernels = [m.fc2.adapter.lora_a.kernel[...] for m in (model, permuted)]
    kept = [set(np.asarray(k)[np.asarray(m)]) for k, m in zip(kernels, masks)]
    assert kept[0] == kept[1]


def test_rows_have_the_factors_as_dense_products():
  rows = figs.layers_of(sparse_model(), example=data()[0])
  table = {r["name"]: (r["M"], r["K"], r["N"], r["pattern"]) for r in rows}
  nm = figs.NM(2, 4)
  assert table == {
    "fc1": (5, 8, 4, nm),
    "fc1/adapter/lora_a": (5, 8, 2, None),
    "fc1/adapter/lora_b": (5, 2, 4, None),
    "fc2": (5, 4, 8, nm),
    "fc2/adapter/lora_a": (5, 4, 2, None),
    "fc2/adapter/lora_b": (5, 2, 8, None),
  }


def test_mistakes_are_refused():
  recipe = slope()
  with pytest.raises(ValueError, match="model with adapters; call .*sparsify"):
    TrainState.create(
      figs.sparsify(Net(), "2:4"), recipe, recipe.transform(optax.sgd(0.1))
    )
  with pytest.raises(ValueError, match="needs lazy_adapters"):
    recipe.check(optax.chain(figs.optim.mask_updates()).init({}))
  with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
    nn.with_adapters(Net(), 0)
  with pytest.raises(ValueError, match="Net: expected a model with masked"):
    nn.with_adapters(Net(), 1)
  conv = nn.SparseConv(4, 4, (1, 1), pattern="2:4", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="expected nnx.Linear for an adapter"):
    nn.with_adapters(conv, 1)
  head = nnx.Linear(8, 6, rngs=nnx.Rngs(0))  # 6 outputs hold no groups of 4
  with pytest.raises(ValueError, match="kernel: axis -1 has length 6"):
    recipe.bind(nn.masked_leaves(figs.sparsify(head, "2:4")))


def test_describe_tells_both():
  text = slope().describe()
  assert "input gradient: from the kernel pruned along both axes" in text
  assert f"low-rank adapters learn from step {START} on" in text


def test_a_run_of_seeds_keeps_its_adapters(tiny_config, tmp_path):
  """Each seed draws its own; what is restored has them and is exactly N:M."""
  config = tiny_config(
    "slope", total_steps=4, checkpoint_every=4, diagnose_every=0, seeds=2,
    **{"recipe.lazy": 0.5, "recipe.rank": 2, "model.scan": True,
       "model.depth": 2},
  )  # fmt: skip
  train(config, tmp_path)
  nets = [finished_model(tmp_path, seed=seed) for seed in range(2)]
  factors = []
  for net in nets:
    params = tree.flatten(nn.split(net)[1])
    (path,) = [p for p in params if p.endswith("fc1/adapter/lora_b")]
    assert params[path].shape[0] == 2 and np.any(params[path])
    factors.append(params[path.replace("lora_b", "lora_a")])
    assert not np.allclose(*factors[-1])  # one draw per layer of the stack
    for name, leaf in nn.masked_leaves(net).items():
      assert figs.is_nm(params[name], leaf.pattern, axis=leaf.axis)
  assert not np.allclose(*factors)
  names = {row["name"] for row in figs.layers_of(tmp_path, seed=0)}
  assert any("adapter/lora_a" in name for name in names)
