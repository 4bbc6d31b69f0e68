"""metadata.py: the keys of all_feat.json, in their order, as every version has written them."""

import json

from features.metadata import Metadata

SHA256 = "ab" * 32
NETWORK = {"backbone": "resnet18", "inter_dim": 512, "categories": ["Robe é"], "img_size": 88,
           "crop_size": 80, "pooling": "model", "normalised": True, "mean": [0.5, 0.4, 0.3],
           "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize": "squash",
           "fill": [1, 2, 3], "open_clip": {"model_cfg": {"embed_dim": 8}}}  # fmt: skip
INFO = {
    "models": [
        {
            "file": "model_best.pth.tar",
            "sha256": SHA256,
            "network": NETWORK,
            "held_out": {"inshop": True, "val_share": 0.1, "digest": "15b0"},
        },
        {"file": "untrained.pth.tar", "sha256": SHA256, "network": NETWORK, "held_out": None},
    ],
    "settings": {
        "COLOR_TOP_N": 9,
        "PALETTE": True,
        "FLIP": False,
        "CROP_TO_BBOX": True,
        "TRANSFORM": 2,
        "EXTRACT_BATCH_SIZE": 128,
        "DEVICE": "cpu",
        "AMP": "bfloat16",
    },
    "pictures": 3093,
    "skipped": ["img/broken.jpg"],
    "category_names": ["Robe é"],
    "sha256": {"all_feat.npy": SHA256},
    "sha256_others": {"all_feat.list": SHA256},
    "follows": "",
    "came": 0,
}


def test_what_was_read_is_written_as_the_same_bytes() -> None:
    content = json.dumps(INFO, indent=1).encode()
    metadata = Metadata.from_json(content)
    assert metadata.to_json() == content
    assert metadata.checksums == {"all_feat.npy": SHA256, "all_feat.list": SHA256}


def test_what_older_versions_left_out_has_a_default_and_what_newer_ones_add_is_ignored() -> None:
    info = json.loads(json.dumps(INFO))
    for name in ("skipped", "follows", "came"):
        del info[name]
    del info["models"][0]["held_out"], info["settings"]["DEVICE"]
    info["models"][1]["network"]["new"] = info["settings"]["NEW"] = info["new"] = 1
    metadata = Metadata.from_json(json.dumps(info).encode())
    assert (metadata.skipped, metadata.follows, metadata.came) == ([], "", 0)
    assert [model.held_out for model in metadata.models] == ["unknown", None]
    assert metadata.settings.DEVICE is None
