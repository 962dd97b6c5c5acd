"""One payload, three answers: which digit, odd or even, and where the ink is.

    python examples/three_tasks.py --epochs 30

Trains a small network with three tails on scikit-learn's digits, puts a learned codec of some 30 bytes on the
cut, and lets the two further tails learn from what the codec sends for the first (Ladon, WACV 2025).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import splitedge

TRAIN, VAL, SHOWN = slice(0, 1100), slice(1100, 1500), 1600


def tail(*last):
    return nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, *last))


def loss_of(name, output, y, ink):
    if name == "ink":
        return F.binary_cross_entropy_with_logits(output, ink)
    return F.cross_entropy(output, y if name == "digit" else y % 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of the codec, and of each tail")
    parser.add_argument("--codec", default="bottleneck:bits=2,channels=4")
    args = parser.parse_args()

    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    ink = (x > 0.5).float()

    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU())
    tails = {"digit": tail(10), "odd": tail(2), "ink": nn.Conv2d(16, 1, 3, 1, 1)}
    optimiser = torch.optim.Adam([p for net in (head, *tails.values()) for p in net.parameters()], 3e-3)
    for _ in range(8):
        for rows in torch.randperm(TRAIN.stop).split(64):
            cut = head(x[rows])
            loss = sum(loss_of(name, net(cut), y[rows], ink[rows]) for name, net in tails.items())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    model, others = nn.Sequential(head, tails["digit"]), {name: tails[name] for name in ("odd", "ink")}
    train, val, labels = (x[TRAIN], y[TRAIN]), (x[VAL], y[VAL]), {"odd": (x[TRAIN], y[TRAIN] % 2)}
    with splitedge.deploy(
        model, x[:8], cut="0", tails=others, codec=args.codec, policy="static:split"
    ) as deployment:
        # "odd" has labels of its own; "ink" is taught by what it says of the cut itself, which needs none.
        print(deployment.fit(train, val, epochs=args.epochs, tail_data=labels))
        result = deployment(x[SHOWN : SHOWN + 1])
    digit, odd = result.output["main"].argmax(), ("even", "odd")[result.output["odd"].argmax()]
    print(f"\n{result.bytes_up} bytes sent of a {y[SHOWN]}; answers: {digit}, {odd}, and its ink:")
    for seen, found in zip(ink[SHOWN, 0], result.output["ink"][0, 0] > 0, strict=True):
        print("  ", *(".#"[int(p)] for p in seen), "  ", *(".#"[int(p)] for p in found))


if __name__ == "__main__":
    main()
