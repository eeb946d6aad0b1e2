"""The servers that are measured."""

from argparse import Namespace

import pytest
import serving


@pytest.mark.parametrize("run", [serving.soak, serving.drain])
def test_the_model_that_was_asked_for_is_measured(run, monkeypatch):
    """`--drain 20 --model M` drained servers with the bundled model."""
    asked = []

    def server(**settings):
        asked.append(settings)
        raise InterruptedError  # it was asked for, which is all there is to see

    monkeypatch.setattr(serving, "Server", server)
    with pytest.raises(InterruptedError):
        run(Namespace(model="other.onnx", workers=2, soak=1, drain=1))
    assert asked == [{"model": "other.onnx", "workers": 2}]
