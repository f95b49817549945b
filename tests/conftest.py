"""What holds for every test."""

import os
import signal
from collections.abc import Iterator

import pytest

# One compute thread, here and in the processes that tests start: the networks are tiny, and threads
# that fight over two cores cost far more than they bring. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs this in the background, or nohup, has signals ignored; so would our commands.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or leaves anything in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
