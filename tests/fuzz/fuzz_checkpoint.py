"""Coverage-guided fuzzing of the checkpoint readers, with atheris.

``python -m tests.fuzz.fuzz_checkpoint RUNS SECONDS`` stops at whichever comes first; atheris is
optional and needed only here. An input is the bytes of model.safetensors; the first byte chooses
which sound config.json lies beside it. A crash prints the input, which libFuzzer also keeps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(runs: int, seconds: int) -> None:
    try:
        import atheris
    except ImportError:
        print("fuzz_checkpoint needs atheris: pip install atheris (Linux and macOS)")
        return
    with atheris.instrument_imports(include=["nybble.formats"]):
        from nybble.errors import FormatError
        from nybble.formats.safetensors import SafetensorsFile
        from tests.fuzz.mutate import read_all, seeds

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sound = seeds(root / "sound")
        corpus, folder = root / "corpus", root / "case"
        corpus.mkdir()
        folder.mkdir()
        for number, (weights, _) in enumerate(sound):
            (corpus / str(number)).write_bytes(bytes([number]) + weights)
        (folder / "config.json").write_bytes(sound[0][1])

        def one(data: bytes) -> None:
            config = sound[data[0] % len(sound)][1] if data else b""
            weights = folder / "model.safetensors"
            (folder / "config.json").write_bytes(config)
            weights.write_bytes(data[1:])
            try:
                file = SafetensorsFile(weights)
                for tensor in file.names():
                    assert file.tensor(tensor).nbytes == file.infos[tensor].nbytes
            except FormatError:
                pass  # open_checkpoint must refuse it too, by name
            read_all(folder)

        options = [f"-runs={runs}", f"-max_total_time={seconds}", "-max_len=32768", "-timeout=20"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
