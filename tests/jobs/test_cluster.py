"""A job on a local Ray cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.config import Settings
from frcli.decode.engine import Engine, Options, setting_of
from frcli.errors import BundleError, FrcliError, MissingExtra
from frcli.jobs.answering import RowAnswers, row_key
from frcli.jobs.cluster import Cluster
from frcli.jobs.files import JobFiles
from frcli.jobs.formats import Row
from frcli.jobs.run import Answerer, JobResult, Progress, run

SETTINGS = Settings(temperature=0.0, max_tokens=12, threads=1)
OPTIONS = Options(threads=1, sequences=2)
ROWS = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A tiny bundle that every process finds."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        # Workers are processes of their own: they must find the same code.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])))
        yield write_bundle(folder / "trio", shape=tiny.TinyShape(context=1 << 12))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"q{n}", "prompt": f"one {n}"}) + "\n" for n in range(ROWS)))
    return path


def job(source: Path, out: Path, bundle: Bundle, answers: Answerer, **options: Any) -> JobResult:
    setting = setting_of(bundle, OPTIONS)
    with JobFiles(source, out) as files:
        return run(files, answers, lambda row: row_key(row, SETTINGS, setting), model=bundle.name, **options)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_is_lost_costs_no_row(bundle: Bundle, source: Path, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster as LocalCluster

    with Engine(bundle, OPTIONS) as engine:
        job(source, tmp_path / "alone.jsonl", bundle, RowAnswers(engine, SETTINGS))

    nodes = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = nodes.add_node(num_cpus=1)
    wrote: set[str] = set()
    try:
        with Cluster(nodes.address, str(bundle.folder), SETTINGS, OPTIONS, setting_of(bundle, OPTIONS)) as cluster:

            def lose(state: Progress) -> None:
                busy = {crew.node for crew in cluster._crews if crew.rows}
                wrote.update(busy)
                if len(busy) == 2 and len(nodes.list_all_nodes()) == 2 and state.done > 4:
                    nodes.remove_node(other, allow_graceful=False)

            def together(rows: Iterator[Row | None]) -> Iterator[Row | None]:
                """No row before both have opened the bundle: one of them could be done with all by then."""
                while sum(crew.most > 0 for crew in cluster._crews) < 2:
                    yield None
                yield from rows

            result = job(source, tmp_path / "out.jsonl", bundle, lambda rows: cluster(together(rows)), progress=lose)
        assert len(nodes.list_all_nodes()) == 1
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert result == JobResult(ROWS, 0)
    assert len(wrote) == 2
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_with_another_bundle_or_none_ends_the_job(bundle: Bundle, source: Path, tmp_path: Path) -> None:
    for place, said in ((str(bundle.folder), "is another one on the node"), (str(tmp_path), "holds no bundle.toml")):
        with (
            pytest.raises(BundleError, match=said),
            Cluster("local", place, SETTINGS, OPTIONS, ["another"]) as cluster,
        ):
            job(source, tmp_path / "out.jsonl", bundle, cluster)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.ray
def test_an_address_where_nobody_is(bundle: Bundle) -> None:
    with (
        pytest.raises(FrcliError, match="cannot join the Ray cluster 127.0.0.1:1"),
        Cluster("127.0.0.1:1", str(bundle.folder), SETTINGS, OPTIONS, []),
    ):
        pass


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'pip install "frcli\[ray\]"'), Cluster("local", "", SETTINGS, OPTIONS, []):
        pass
