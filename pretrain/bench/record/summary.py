"""A record of a machine in a few lines."""

from collections.abc import Iterator

from pretrain.planner.time.hardware import Hardware


def summary(record: Hardware) -> str:
    """List the main values, and which values were not measured."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: Hardware) -> Iterator[str]:
    for table in record.products:
        best = max(table.products, key=lambda row: row.tflops)
        shape = f"{best.m} x {best.k} x {best.n}"
        rows = f"{len(table.products)} measured"
        yield f"products, {table.precision}: at most {best.tflops:.4g} TFLOP/s ({shape}), {rows}"
    yield f"copies: {record.copy_gbps.value:.4g} GB/s; updates: {_value(record.optimizer_gbps)} GB/s"
    yield f"host: {record.host_layer_us.value:.0f} us a layer and direction, {record.host_step_us.value:.0f} us a step"
    link = record.in_node
    if link.gbps.origin == "measured":
        yield f"links in the node: {link.latency_us.value:.0f} us, {link.gbps.value:.4g} GB/s"
    if record.between_nodes.gbps.origin == "measured":
        link = record.between_nodes
        yield f"links between nodes: {link.latency_us.value:.0f} us, {link.gbps.value:.4g} GB/s a ring"
    if record.cpu is not None and record.cpu.crowding:
        slower = ", ".join(f"{ranks} ranks {factor:.2f}" for ranks, factor in record.cpu.crowding.items())
        yield f"time of a rank while several compute, over that of one alone: {slower}"
    others = [name for origin, names in record.origins().items() if origin != "measured" for name in names]
    yield f"not measured: {', '.join(others)}"


def _value(quantity: object) -> str:
    value = getattr(quantity, "value", None)
    return "-" if value is None else f"{value:.4g}"
