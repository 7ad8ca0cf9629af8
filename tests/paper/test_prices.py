import pytest

from localdpo.ground.errors import Refused
from localdpo.pairs.costs import Costs
from localdpo.paper.prices import price, prices

LOCAL = Costs(2, 2, 8, 200, dict(all=10.0, encode=1.0, walk=8.0), 2**30, ("cpu",))
VANILLA = Costs(2, 2, 4, 384, dict(all=20.0, walk=14.0, decode=3.0, critic=2.0), 2**30, ("cpu",))


def test_the_price_of_a_pair_has_every_part_of_the_time():
    assert price(LOCAL) == (dict(encode=0.125, walk=1.0, rest=0.125), 25)
    assert sum(price(VANILLA)[0].values()) == pytest.approx(5.0)


def test_bars_add_up_and_the_cheapest_is_on_top():
    ax = prices(dict(local_dpo=LOCAL, dpo=VANILLA)).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dpo", "local_dpo"]
    assert [max(bar.get_x() + bar.get_width() for bars in ax.containers for bar in [bars[y]]) for y in (0, 1)] == [
        5,
        1.25,
    ]
    assert [text.get_text() for text in ax.texts] == [" 96 calls", " 25 calls"]


def test_a_store_from_before_the_ledger_has_no_price():
    with pytest.raises(Refused, match="a store without costs: has no price.*\n  -> make its pairs anew"):
        price(Costs(0, 3))
