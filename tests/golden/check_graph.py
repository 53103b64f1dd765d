"""Golden checks of growing graphs: structure, values, statistics, expansions, and one whole growth action."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.growing import GrowthUpdate
from growarray.networks import GrowingMLP, accuracy, f1, line_search
from growarray.networks.graph import Expansion, ExpansionType, GrowingDAG
from growarray.networks.graph.structure import candidate_suffix
from growarray.nn import Parameter, ReLU, activation
from growarray.ops import cross_entropy, linear, mse
from growarray.optim import AdamW
from tests.golden.case import Case


def _load(dag: GrowingDAG, case: Case, prefix: str = "in") -> None:
    for edge, layer in dag.layers.items():
        layer.layer.weight.data = case[f"{prefix}.w[{edge}]"].copy()
        if layer.bias is not None:
            layer.bias.data = case[f"{prefix}.b[{edge}]"].copy()


def _check_weights(case: Case, dag: GrowingDAG, prefix: str) -> None:
    for edge, layer in dag.layers.items():
        case.check(f"{prefix}.w[{edge}]", layer.weight)
        target = dag._ends[edge][1]
        into = [e for e, ends in dag._ends.items() if ends[1] == target and dag.layers[e].use_bias]
        if len(into) < 2 or target != case.config.get("expand"):
            case.check(f"{prefix}.b[{edge}]", layer.bias)
            continue
        # New neurons behind several biases have one bias, which the layers share: only the sum is fixed.
        case.ignore(f"{prefix}.b[{edge}]")
        recorded = np.sum([case[f"{prefix}.b[{e}]"] for e in into], axis=0)
        np.testing.assert_allclose(np.sum([dag.layers[e].bias.data for e in into], axis=0), recorded, atol=1e-9)


def _loss(kind: str, y: np.ndarray, target: np.ndarray) -> tuple[Any, Callable[..., np.ndarray]]:
    return cross_entropy(y, target) if kind == "ce" else mse(y, target)


def _activities(dag: GrowingDAG, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, and the activity of every node, which is kept while statistics are collected."""
    y = dag(x)
    return y, {node: merge.recorder.need("activity") for node, merge in dag.merges.items()}


def _collect(
    dag: GrowingDAG, case: Case, kind: str, size: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """Statistics of batches of ``size`` in order; gradients and activities of every node as well."""
    dag.init_computation()
    gradients: dict[str, list[np.ndarray]] = {node: [] for node in dag.nodes}
    activities = copy.deepcopy(gradients)
    for start in range(0, len(case["in.x"]), size):
        x, target = (case[f"in.{name}"][start : start + size] for name in ("x", "t"))
        y, pullback = dag.vjp(x)
        pullback(_loss(kind, y, target)[1]())
        dag.update_computation()
        for node, merge in dag.merges.items():
            gradients[node].append(merge.pre_activity_grad)
            activities[node].append(merge.recorder.need("activity"))
    return gradients, activities


def _bottleneck(dag: GrowingDAG, node: str, gradients: Any, activities: Any) -> np.ndarray:
    """What the planned deltas leave undone at a node, sample by sample."""
    wanted = np.concatenate(gradients[node])
    for edge, (source, target) in zip(dag.layers, dag._ends.values(), strict=True):
        if target == node:
            wanted = wanted - dag.layers[edge].update.delta(np.concatenate(activities[source]))
    return wanted


def check_dag(case: Case) -> None:
    config = case.config
    nodes = {}
    for name in dict.fromkeys(node for edge in config["edges"] for node in edge):  # the original's order of the nodes
        size, function = config["nodes"][name]
        nodes[name] = {"type": "linear", "size": size, "activation": function}
    dag = GrowingDAG(
        config["in"], config["out"], config["neurons"], config["bias"], False, "linear", config["activation"],
        config["dag_name"], dtype=np.float64,
        DAG_parameters={"edges": [tuple(e) for e in config["edges"]], "node_attributes": nodes},
    )  # fmt: skip
    _load(dag, case)
    _check_structure(case, dag)
    x, target = case["in.x"], case["in.t"]
    y, pullback = dag.vjp(x)
    case.check("out.y", y)
    loss, back = _loss(config["loss"], y, target)
    case.check("out.loss", float(loss))
    case.check("out.evaluate", [accuracy(y, target) if config["loss"] == "ce" else -1, float(loss)])
    pullback(back())
    for edge, layer in dag.layers.items():
        case.check(f"out.dw[{edge}]", layer.weight.grad)
        case.check_any(f"out.db[{edge}]", None if layer.bias is None else layer.bias.grad)
    gradients, activities = _collect(dag, case, config["loss"], case["in.batch_size"])
    dag.compute_optimal_delta()
    energies = dag.bottlenecks()
    for node in dag.nodes:
        case.check(f"out.activity[{node}]", np.concatenate(activities[node]))
        if node != dag.root:
            case.check(f"out.grad[{node}]", np.concatenate(gradients[node]))
            bottleneck = _bottleneck(dag, node, gradients, activities)
            case.check(f"out.bottleneck[{node}]", bottleneck)
            np.testing.assert_allclose(energies[node], np.mean(np.sum(bottleneck**2, axis=1)), rtol=1e-9)
    for edge, layer in dag.layers.items():  # of several optimal deltas the original's pseudo-inverse takes this one too
        delta = layer.update.delta
        case.check(f"out.delta_w[{edge}]", delta.weight)
        case.check_any(f"out.delta_b[{edge}]", delta.bias)
    case.check("out.decrease", {node: dag.merges[node].parameter_update_decrease for node in dag.nodes})
    dag.reset_computation()
    _check_masked_extension(case, dag)


def _check_structure(case: Case, dag: GrowingDAG) -> None:
    case.check("out.nodes", dag.nodes)
    case.check("out.edges", [list(edge) for edge in dag.edges])
    case.check("out.ancestors", {node: sorted(found) for node, found in dag.ancestors.items()})
    case.check("out.n_parameters", dag.number_of_parameters())
    case.check("out.n_parameters_first_edge", dag.get_edge_module(*dag.edges[0]).number_of_parameters())
    direct, paths = dag.find_possible_extensions()
    found = {
        "direct": sorted([e["previous_node"], e["next_node"]] for e in direct),
        "one_hop": sorted([p["previous_node"], p["new_node"], p["next_node"]] for p in paths),
    }
    case.check("out.extensions", found)
    actions = dag.define_next_actions()
    described = sorted(
        (
            [
                a.type.name, a.previous_node, a.expanding_node and a.expanding_node.split("_")[0], a.next_node,
                sorted(a.previous_nodes), sorted(a.next_nodes),
            ]
            for a in actions
        ),
        key=lambda row: [str(entry) for entry in row],
    )  # fmt: skip
    case.check("out.actions", described)
    new = [a.expanding_node for a in actions if a.type is ExpansionType.NEW_NODE]
    case.check("out.action_suffixes", [str(node).split("_")[1] for node in new])


def _check_masked_extension(case: Case, dag: GrowingDAG) -> None:
    """Planned deltas of all edges, and new neurons at one node, before they are carried out and after."""
    x, scaling = case["in.x"], case["in.scaling"]
    for edge, layer in dag.layers.items():
        delta = layer.layer_of_tensor(case[f"in.delta[{edge}]_w"], case.get(f"in.delta[{edge}]_b"))
        layer.update = layer.update.with_delta(delta, None)
        layer.optimal_delta_scaling = scaling**2
    case.check("out.extended_y_nomask", dag.extended_forward(x))
    expansion = next(a for a in dag.growing_layers if a.expanding_node == case.config["expand"])
    _plan_neurons(case, dag, expansion)
    expansion.scaling_factor = scaling
    case.check("out.extended_y", dag.extended_forward(x))
    for layer in dag.layers.values():
        layer.apply_change()
        layer.delete_update()
    expansion.apply_change()
    _check_weights(case, dag, "out.grown")
    case.check("out.grown_y", dag(x))
    case.check("out.grown_sizes", {node: merge.in_features for node, merge in dag.merges.items()})


def _plan_neurons(case: Case, dag: GrowingDAG, expansion: Expansion, prefix: str = "in") -> None:
    """Hold the recorded extensions of the layers around a node as the plan of an expansion."""
    into = [f"{a}->{b}" for a, b in expansion.new_edges if b == expansion.expanding_node]
    out = [f"{a}->{b}" for a, b in expansion.new_edges if a == expansion.expanding_node]
    blocks = [case[f"{prefix}.ext_out[{edge}]_w"] for edge in into]
    biases = [b for edge in into if (b := case.get(f"{prefix}.ext_out[{edge}]_b")) is not None]
    alpha = np.concatenate([*blocks, *([np.sum(biases, axis=0)[:, None]] if biases else [])], axis=1)
    omega = np.concatenate([case[f"{prefix}.ext_in[{edge}]_w"] for edge in out])
    expansion.take(GrowthUpdate(input_extension=omega, output_extension=alpha, singular_values=np.ones(len(alpha))))


def _block(alpha: Any, bias: Any, omega: Any, function: Any, x: np.ndarray) -> tuple[np.ndarray, Callable[..., Any]]:
    """``omega f(alpha x + bias)`` and the way back to the three; ``bias`` has a column for each edge before."""
    pre, back_alpha = linear(x, alpha, bias.sum(axis=1))
    hidden, back = function.vjp(pre)
    y, back_omega = linear(hidden, omega, None)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dh, domega, _ = back_omega(dy)
        _, dalpha, dbias = back_alpha(back(dh))
        return dalpha, np.repeat(dbias[:, None], bias.shape[1], axis=1), domega

    return y, pullback


def _bottleneck_loss(y: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    """``mean <y, wanted> / sqrt(mean |y|^2 + 1e-8)`` over the samples, and its gradient by ``y``."""
    n = len(y)
    product, norm = float((y * wanted).sum()) / n, np.sqrt(float((y**2).sum()) / n + 1e-8)
    return product / norm, (wanted / norm - product / norm**3 * y) / n


def check_graph_network(case: Case) -> None:
    config = case.config
    neurons = config["neurons"]
    dag = GrowingDAG(config["in"], config["out"], neurons, name="net", dtype=np.float64)
    case.check("out.initial", {"nodes": dag.nodes, "edges": [list(edge) for edge in dag.edges]})
    dag.add_node_with_two_edges(
        "start@net", "1@net", "end@net", {"type": "linear", "size": config["hidden"], "activation": "relu"}
    )
    case.check("out.second_edge_has_bias", dag.get_edge_module("1@net", "end@net").use_bias)
    _load(dag, case)
    gradients, activities = _collect(dag, case, "mse", len(case["in.x"]))
    case.check("out.y", activities["end@net"][0])
    dag.compute_optimal_delta()
    bottlenecks = {node: _bottleneck(dag, node, gradients, activities) for node in dag.nodes if node != dag.root}
    for node, found in bottlenecks.items():
        case.check(f"out.bottleneck[{node}]", found)
    dag.reset_computation()  # the deltas stay planned: the original carries them out beside the new neurons

    kind, previous, node, after = case["in.action"]
    expansion = Expansion(dag, ExpansionType[kind], previous, after, node)
    x = np.concatenate([np.concatenate(activities[n]) for n in expansion.previous_nodes], axis=1)
    wanted = np.concatenate([bottlenecks[n] for n in expansion.next_nodes], axis=1)
    alpha, bias, omega = _descend(case, expansion.function_before, x, wanted)
    _check_expansion(case, dag, expansion, (alpha, bias, omega))
    _check_growth(case, dag, expansion)


def _descend(case: Case, function: Any, x: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    """The original's way to new neurons: steps of AdamW on the bottleneck loss from the recorded start."""
    alpha, bias, omega = (Parameter(case[f"in.{name}0"].copy()) for name in ("alpha", "bias", "omega"))
    optimizer, history = AdamW([alpha, omega, bias], lr=case.config["lr"], weight_decay=0.0), []
    for _ in range(case.config["epochs"]):
        y, pullback = _block(alpha.data, bias.data, omega.data, function, x)
        loss, dy = _bottleneck_loss(y, wanted)
        history.append(loss)
        optimizer.zero_grad()
        for parameter, gradient in zip((alpha, bias, omega), pullback(dy), strict=True):
            parameter.accumulate(gradient)
        optimizer.step()
    case.check("out.loss_history", history)
    y, _ = _block(alpha.data, bias.data, omega.data, function, x)
    hidden = function(x @ alpha.data.T + bias.data.sum(axis=1))
    improvement = -np.mean(hidden * (wanted @ omega.data), axis=0)
    case.check("out.neuron_foi", improvement)
    case.check("out.active_neurons", int(np.sum(improvement > -np.inf)))
    start = 0
    for name in [name for name in case.arrays if name.startswith("out.block_output[")]:
        case.check(name, y[:, start : start + case[name].shape[1]])
        start += case[name].shape[1]
    return alpha.data, bias.data, omega.data


def _check_expansion(case: Case, dag: GrowingDAG, expansion: Expansion, weights: tuple[np.ndarray, ...]) -> None:
    """What the expansion adds and where, and its weights cut by edge; nothing of it is in the graph."""
    new = [expansion.expanding_node] if expansion.type is ExpansionType.NEW_NODE else []
    edges = [list(edge) for edge in expansion.new_edges]
    case.check("out.candidates", {"nodes": new, "edges": edges if new else []})
    case.check("out.mask", {"nodes": [expansion.expanding_node], "edges": edges})
    assert not set(new) & set(dag.nodes)
    alpha, bias, omega = weights
    column = row = biased = 0
    for before, after in expansion.new_edges:
        edge = f"{before}->{after}"
        if after == expansion.expanding_node:
            width = dag.merges[before].in_features
            case.check(f"out.ext_out[{edge}]_w", alpha[:, column : column + width])
            column += width
            if f"out.ext_out[{edge}]_b" in case.arrays:
                case.check(f"out.ext_out[{edge}]_b", bias[:, biased])
                biased += 1
        else:
            width = dag.merges[after].in_features
            case.check(f"out.ext_in[{edge}]_w", omega[row : row + width])
            row += width


def _check_growth(case: Case, dag: GrowingDAG, expansion: Expansion) -> None:
    """Losses at all scalings, the search of one, and the grown graph."""
    x, target = case["in.x"], case["in.t"]
    dag._expansions = [expansion]
    _plan_neurons(case, dag, expansion, "out")

    def loss(factor: float) -> float:
        expansion.scaling_factor = factor
        for layer in dag.layers.values():
            layer.optimal_delta_scaling = factor**2
        return float(mse(dag.extended_forward(x), target)[0])

    losses = [loss(factor) for factor in case["in.factors"]]
    case.check("out.extended_losses", losses)
    recorded = case["out.amplitude_factor"]
    assert line_search(loss, refinements=12).loss <= loss(recorded) * (1 + 1e-6)
    case.check("out.amplitude_factor", _original_search(loss)["factor"])
    chosen = float(case["in.factors"][int(np.argmin(losses))])
    loss(chosen)
    case.check("out.extended_y", dag.extended_forward(x))
    parameters = dag.number_of_parameters()  # the original leaves out the new neurons
    metrics = {"loss_train": min(losses), "loss_val": min(losses), "nb_params": parameters, "acc_train": -1}
    case.check("out.metrics", metrics | {"BIC": _original_bic(parameters, min(losses), len(x))})
    for layer in dag.layers.values():
        layer.apply_change(optimal_delta_scaling=case.config["scale"] ** 2)
    expansion.apply_change(case.config["scale"])
    _check_weights(case, dag, "out.final")
    case.check("out.final_y", dag(x))
    widths = {node: merge.in_features for node, merge in dag.merges.items()}
    case.check("out.final", {"nodes": widths, "edges": [list(edge) for edge in dag.edges]})


def _original_search(loss: Callable[[float], float]) -> dict[str, Any]:
    """The original's line search: 0 and 100 factors from 1e-6 to 1, and a decade more for as long as that helps."""
    factors, losses = [0.0, *np.logspace(-6, 0, 100)], []
    decade, best = 0, np.inf
    while True:
        losses += [loss(float(factor)) for factor in factors[len(losses) :]]
        if not min(losses) < best:
            break
        best = min(losses)
        factors += [*np.logspace(decade, decade + 1, 100)]
        decade += 1
    return {"factor": float(factors[int(np.argmin(losses))]), "min_loss": min(losses), "n_tested": len(losses)}


def _original_bic(parameters: int, loss: float, samples: int) -> float:
    """The original takes the loss for a likelihood, so that a larger loss is better; :func:`bic` is the right one."""
    return float(parameters * np.log2(samples) - 2 * np.log2(loss))


def check_graph_tools(case: Case) -> None:
    function = activation(case["in.activation"])
    y, pullback = _block(case["in.alpha"], case["in.bias"], case["in.omega"], function, case["in.x"])
    case.check("out.block", y)
    loss, dy = _bottleneck_loss(y, case["in.bottleneck"])
    case.check("out.loss", loss)
    for name, gradient in zip(("alpha", "bias", "omega"), pullback(dy), strict=True):
        case.check(f"out.d{name}", gradient)
    case.check("out.normalisation_factor", GrowingMLP.normalisation_factor(case["in.max_values"]))
    for name in ("out.line_search", "out.line_search_far"):
        recorded = case[name]

        def square(factor: float, target: float = recorded["target"]) -> float:
            return (factor - target) ** 2

        assert line_search(square, refinements=12).loss <= recorded["min_loss"]
        found = {"target": recorded["target"], **_original_search(square)}
        case.check(name, {key: found[key] for key in recorded})
    case.check("out.bic", [[*row[:3], _original_bic(row[0], row[1], row[2])] for row in case["out.bic"]])
    case.check("out.alphabetic_index", {i: candidate_suffix(int(i)) for i in case["out.alphabetic_index"]})
    slopes = {
        name: (ReLU(at_zero=1.0) if name.startswith("ReLUD") else activation(name.lower())).slope_at_zero
        for name in case["out.activation_zero_plus"]
    }
    expected = {**case["out.activation_zero_plus"], "SELU": 1.0507009873554805}  # fact selu_gradient_rounded
    case.check("out.activation_zero_plus", slopes, expected=expected)
    labels, predictions = case["in.labels"], case["in.predictions"]
    case.check("out.f1", {average: f1(predictions, labels, average=average) for average in ("micro", "macro")})


CHECKS: dict[str, Callable[[Case], None]] = {
    "dag": check_dag,
    "graph_network": check_graph_network,
    "graph_tools": check_graph_tools,
}
