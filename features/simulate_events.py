"""What happens in the SYNTHETIC shop of `simulate.py`: one chunk of customers -> its tables, in NumPy.

The world's rules are told there. All is vectorised over the people of a chunk; times are whole seconds since 1970, and
``NEVER``, like anything else from ``END`` on, has not happened. What each table holds is defined in `schema.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features import simulate_plan as shop
from features.schema import BEHAVIOUR, IDENTITY_KINDS
from features.simulate_plan import CONVERSION_DAYS, DAY, END, HOUR, NEVER, Ids, Plan, Rows, Table, Text, moment_at, shop_days

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator
# People; by value level 0, 1, 2 where there are three figures.
ACCOUNTS_PER_PERSON, PROSPECT_SHARE, HURT_SHARE = 1.05, 0.015, 0.4
EARLY_SHARE, EARLY_DAYS, EARLY_ENTRY_DAYS = 0.4, 1095, 120
"""Registered before the span, at most so long before; the first order known falls into so many days of its start."""
COUNTRIES, COUNTRY_SHARE = ("DE", "AT", "CH", "FR", "NL", "PL"), (0.6, 0.1, 0.08, 0.1, 0.07, 0.05)
VALUE_SHARE, VALUE_PRICE, VALUE_RATE, VALUE_QUIT = (0.55, 0.33, 0.12), (0.8, 1.2, 2.2), (0.9, 1.1, 1.6), (1.1, 1.0, 0.7)
PRICE_SENSITIVE_SHARE, PRICE_QUIT = np.array([0.3, 0.25, 0.1]), 1.4
RATE_MEDIAN_DAYS, RATE_SIGMA, QUIT_BETA, HURT_QUIT = 118.0, 0.85, (1.4, 6.5), 0.5
"""Lognormal rate, beta quit probability; an order that hurts adds this share of what the latter lacks of 1."""

# Contacts; by tier: 0 hold-out, 1 nudge, 2 offer, 3 concierge.
CONTACT_DAYS, CONSENT_SHARE, WITHDRAWAL_SHARE = 30.0, 0.85, 0.15
PROPENSITY, COST = np.array([0.55, 0.25, 0.14, 0.06]), np.array([0.0, 0.02, 3.0, 12.0])
EFFECTS, EFFECT_CONCENTRATION = np.array([[0.04, 0.12, 0.15], [0.03, 0.35, 0.15], [0.05, 0.10, 0.38]]), 12.0
"""Mean effect of tiers 1 to 3 on the ordinary, the price-sensitive and the high-value, leaning on `domain.md` 5; each
customer's own is a beta around it."""
DELIVERED_SHARE, OPENED_SHARE, CLICKED_SHARE, GONE_OPENED_SHARE = 0.97, 0.45, 0.25, 0.15
CHANNELS = ("push", "e-mail", "sms", "call")
STRATEGIES = ("recommendation", "novelty", "stepped_coupon", "flash_sale", "advisor", "apology_voucher")
CAMPAIGNS = tuple(f"{year}-{month:02d}" for year in range(1970, 2026) for month in range(1, 13))

# Orders and service.
CANCELLED_SHARE, LATE_SHARE, RETURN_SHARE, TICKET_SHARE, REVIEW_SHARE, REFUND_DAYS = 0.02, 0.12, 0.05, 0.08, 0.25, 14
PRODUCTS, CATEGORIES, BRANDS, ZIPF, LINE_STOP, MAX_LINES = 2000, 25, 60, 0.9, 0.46, 6
PRODUCT_NAMES = tuple(f"SKU{number:04d}" for number in range(PRODUCTS))
CATEGORY_NAMES = tuple(f"category-{number:02d}" for number in range(CATEGORIES))
BRAND_NAMES = tuple(f"brand-{number:02d}" for number in range(BRANDS))
LEVEL_ORDERS, FIXED_LINES = (3, 8, 20), 3.2
"""Orders that raise the membership; lines a customer of the first order and those that contacts bring."""
COUPONS_A_MONTH, COUPONS_SIGMA, ORDINARY_COUPONS, COUPON_DAYS, REDEEMED_SHARE = 2.0, 0.9, 0.1, 30, 0.45
"""Claims of the price-sensitive (median of a lognormal) and of the others."""

# Visits and data quality.
FADE_DAYS, VISITED_SHARE, LEFT_CARTS, NIGHT_SHARE = 25.0, 0.9, 0.2, 0.05
"""Visits and coupon claims die away over so many days after a customer has left; orders with a visit; visits without
an order that leave a cart, and that fall into the deep night."""
BROWSED, BOUGHT, GAP_SECONDS, MIN_BROWSED = 0.4, 0.55, 45.0, 0.2
"""Chances that views come to an end, without and with an order; mean time between two events; least share of browsing."""
DRAWN_KINDS = np.repeat(np.arange(5, dtype=np.int8), (166, 50, 24, 11, 5))
"""256 kinds of behaviour, view to remove_from_cart, of which a random byte picks one."""
SEARCH, ADD, CHECKOUT, PAY = (BEHAVIOUR.index(kind) for kind in ("search", "add_to_cart", "checkout", "pay"))
LACKING = 0.01
LINK_DAYS, TERMINAL_CUSTOMERS, CUSTOMERS_PER_TERMINAL = 15, 80, 2000
"""Until a second account is seen on the first one's device; the trap: devices in the shop that many strangers use."""
TABLETS, TERMINALS = 20_000_000, 40_000_000  # their device numbers start here, above those of the accounts
IDENTITY_LETTERS = np.frombuffer(b"CDPMXX", dtype=np.uint8)


@dataclass(frozen=True)
class World:
    """A chunk: its n people and what they do. Accounts 0 to n-1 are the people's first, the others second ones."""

    rng: Rng
    plan: Plan
    number: int
    people: Rows
    contacts: Rows
    orders: Rows
    lines: Rows
    left: Ints
    """When each person has left for good, (n,)."""
    owner: Ints
    """The person of each account, (accounts,)."""
    switched: Ints
    """When each person goes over to the second account, (n,)."""
    registered: Ints
    """When each account was registered, (accounts,)."""

    def account(self, rows: Rows) -> Ints:
        """The account that the ``person`` of each row uses at the time ``at``."""
        n = self.left.size
        second = np.zeros(n, dtype=np.int64)
        second[self.owner[n:]] = np.arange(n, self.owner.size)
        return np.where(rows.at >= self.switched[rows.person], second[rows.person], rows.person)

    def named(self, letter: str, account: Ints) -> Ids:
        """Ids of accounts; with the letter C the customer ids."""
        return _ids(letter, self.number * self.plan.chunk_customers + 1 + account, 8)

    def ids(self, letter: str, rows: Ints) -> Ids:
        """Ids of numbered rows that no other chunk gives."""
        return _ids(letter, self.number * 10**8 + rows, 13)


def _ids(letter: str, numbers: Ints, digits: int) -> Ids:
    return Ids(np.full(numbers.size, ord(letter), dtype=np.uint8), numbers, digits)


def _share(rng: Rng, n: int, share: Any) -> Mask:
    """True with the given probability, (n,)."""
    return rng.random(n, dtype=np.float32) < share


def _between(rng: Rng, low: Any, high: Any, n: int) -> Ints:
    return (low + rng.random(n) * (high - low)).astype(np.int64)


def _wait(rng: Rng, days: float, n: int) -> Ints:
    """Exponential times in seconds, at least one."""
    return 1 + rng.exponential(days * DAY, n).astype(np.int64)


def _in_season(rng: Rng, low: Any, high: Any, n: int) -> Ints:
    """Times between two others, drawn by the season."""
    return moment_at(shop_days(low) + rng.random(n) * (shop_days(high) - shop_days(low)))


def _choice(rng: Rng, shares: Any, n: int) -> Ints:
    return np.searchsorted(np.cumsum(shares)[:-1], rng.random(n), side="right")


def world(plan: Plan, number: int) -> World:
    """The people of one chunk and what they do."""
    rng = np.random.default_rng([plan.seed, number])
    accounts = min(plan.chunk_customers, plan.customers - number * plan.chunk_customers)
    people = _people(rng, plan, round(accounts / ACCOUNTS_PER_PERSON))
    contacts = _contacts(rng, people)
    orders, left = _stayed(rng, people, _served(rng, _placed(rng, people, contacts)))
    second, switched = _second_accounts(rng, orders, left.size, accounts)
    lines = _lines(rng, plan.seed, people.where(orders.person))
    registered = np.concatenate([people.registered, switched[second] - HOUR])
    owner = np.concatenate([np.arange(left.size), second])
    return World(rng, plan, number, people, contacts, orders, lines, left, owner, switched, registered)


def _people(rng: Rng, plan: Plan, n: int) -> Rows:
    """What is drawn once for each person; ``rate``: lasting orders a shop day; ``effects``: (n, 4), tier 0 first."""
    start, scale = END - plan.days * DAY, (plan.lines_per_customer - FIXED_LINES) / (shop.LINES_PER_CUSTOMER - FIXED_LINES)
    early, prospect = _share(rng, n, EARLY_SHARE), _share(rng, n, PROSPECT_SHARE)
    before = _in_season(rng, start - EARLY_DAYS * DAY, start, n)
    resumed = _in_season(rng, start, start + EARLY_ENTRY_DAYS * DAY, n)
    registered = np.where(early, before, _in_season(rng, start, END - HOUR, n))
    entered = np.where(early, resumed, registered + _between(rng, 300, 2 * DAY, n))
    ordering = ~prospect & (entered < END)
    level = _choice(rng, VALUE_SHARE, n)
    price = _share(rng, n, PRICE_SENSITIVE_SHARE[level])
    rate = rng.lognormal(-np.log(RATE_MEDIAN_DAYS), RATE_SIGMA, n) * np.array(VALUE_RATE)[level] * scale
    # Leaving is a matter of orders: with more of them each must weigh less, or they would not come to more.
    quit = rng.beta(*QUIT_BETA, n) * np.array(VALUE_QUIT)[level] * np.where(price, PRICE_QUIT, 1.0) / scale
    latent = {"rate": np.where(prospect, 0.0, rate), "quit": np.minimum(quit, 0.95), "service_hurt": _share(rng, n, HURT_SHARE)}
    marks = {"value_level": level, "price_sensitive": price, "effects": _effects(rng, np.where(level == 2, 2, price))}
    tastes = {"country": _choice(rng, COUNTRY_SHARE, n), "taste": rng.integers(0, CATEGORIES, n)}
    times = {"registered": registered, "entered": np.where(ordering, entered, NEVER), "consent_until": _consent(rng, registered)}
    times["begin"] = np.maximum(np.where(ordering, entered, registered), start)
    return Rows(**latent, **marks, **tastes, **times)


def _consent(rng: Rng, registered: Ints) -> Ints:
    """Until when each person consents to marketing; 0: never did."""
    n = registered.size
    until = np.where(_share(rng, n, WITHDRAWAL_SHARE), _in_season(rng, registered, END, n), NEVER)
    return np.where(_share(rng, n, CONSENT_SHARE), until, 0)


def _effects(rng: Rng, segment: Ints) -> Floats:
    shape = EFFECT_CONCENTRATION * EFFECTS[segment]
    return np.concatenate([np.zeros((segment.size, 1)), rng.beta(shape, EFFECT_CONCENTRATION - shape)], axis=1)


def _contacts(rng: Rng, people: Rows) -> Rows:
    """Assignments on random days, between 9 and 18 h; ``order_at`` is ``NEVER`` unless the contact brings an order."""
    until = np.maximum(np.minimum(people.consent_until, END), people.begin)
    person = np.repeat(np.arange(until.size), rng.poisson((until - people.begin) / (CONTACT_DAYS * DAY)))
    n = person.size
    day = _between(rng, people.begin[person], until[person], n) // DAY + 1
    at, tier = day * DAY + _between(rng, 9 * HOUR, 18 * HOUR, n), _choice(rng, PROPENSITY, n)
    moved = _share(rng, n, people.effects[person, tier])
    order_at = np.where(moved, _in_season(rng, at, at + CONVERSION_DAYS * DAY, n), NEVER)
    return Rows(person=person, at=at, tier=tier, propensity=PROPENSITY[tier], order_at=order_at).where(at < until[person])


def _placed(rng: Rng, people: Rows, contacts: Rows) -> Rows:
    """Orders by person and time as if nobody ever left; ``own``: not brought by a contact."""
    begin = shop_days(people.entered)
    span = np.maximum(shop_days(END) - begin, 0)
    person = np.repeat(np.arange(begin.size), rng.poisson(people.rate / (1 - CANCELLED_SHARE) * span))
    at = np.minimum(moment_at(begin[person] + rng.random(person.size) * span[person]), END - 1)
    entering, moved = np.flatnonzero(people.entered < END), contacts.where(contacts.order_at < END)
    persons = np.concatenate([person, entering, moved.person])
    times = np.concatenate([at, people.entered[entering], moved.order_at])
    own = np.arange(persons.size) < person.size + entering.size
    key = np.sort((persons * NEVER + times) * 2 + own)  # one number a row, so that one sort orders all three
    return Rows(person=key // 2 // NEVER, at=key // 2 % NEVER, own=key % 2 == 1)


def _served(rng: Rng, orders: Rows) -> Rows:
    """Adds to orders what each comes to: delivery, perhaps a ticket and a return; nothing of that when it is cancelled."""
    at, n = orders.at, orders.at.size
    lasts = ~(orders.own & _share(rng, n, CANCELLED_SHARE))
    shipped, due = at + _between(rng, 4 * HOUR, 48 * HOUR, n), at + rng.integers(4, 8, n) * DAY
    late = lasts & _share(rng, n, LATE_SHARE)
    delivered = np.where(late, due + _wait(rng, 2.5, n), _between(rng, shipped + HOUR, due, n))
    asks = lasts & _share(rng, n, np.where(late, 3 * TICKET_SHARE, TICKET_SHARE))
    opened, complaint = at + _between(rng, DAY, 12 * DAY, n), _share(rng, n, np.where(late, 0.8, 0.35))
    ignored = complaint & _share(rng, n, 0.25)
    resolved = opened + np.where(ignored, 30 * DAY + _wait(rng, 60, n), _wait(rng, 2.5, n))
    back, slow = lasts & _share(rng, n, RETURN_SHARE), _share(rng, n, 0.2)
    returned = delivered + _between(rng, HOUR, REFUND_DAYS * DAY, n)
    completed = returned + np.where(slow, REFUND_DAYS * DAY + _wait(rng, 15, n), _between(rng, DAY, 13 * DAY, n))
    orders.cancelled = np.where(lasts, NEVER, at + _between(rng, 600, 12 * HOUR, n))
    orders.shipped, orders.due, orders.delivered = np.where(lasts, shipped, NEVER), due, np.where(lasts, delivered, NEVER)
    orders.opened, orders.complaint = np.where(asks, opened, NEVER), complaint
    orders.resolved = np.where(ignored & _share(rng, n, 0.4), NEVER, resolved)
    orders.returned, orders.completed = np.where(back, returned, NEVER), np.where(slow & _share(rng, n, 0.3), NEVER, completed)
    orders.hurt = late | (asks & ignored) | (back & slow)
    return orders


def _stayed(rng: Rng, people: Rows, orders: Rows) -> tuple[Rows, Ints]:
    """The orders that are placed indeed, and when each person has left: with the first order that he leaves after."""
    quit = people.quit[orders.person]
    quit += (1 - quit) * HURT_QUIT * (orders.hurt & people.service_hurt[orders.person])
    last = orders.where(orders.own & (orders.cancelled == NEVER) & _share(rng, quit.size, quit))
    left = np.full(people.rate.size, NEVER)
    np.minimum.at(left, last.person, last.at)
    return orders.where(~orders.own | (orders.at <= left[orders.person])), left


def _second_accounts(rng: Rng, orders: Rows, n: int, accounts: int) -> tuple[Ints, Ints]:
    """Who goes over to a second account, and when (n,): shortly before an order that is not the first."""
    count = np.bincount(orders.person, minlength=n)
    second = np.sort(np.argsort(rng.random(n) - (count > 1))[: accounts - n])
    place = np.cumsum(count) - count + 1 + (rng.random(n) * (count - 1)).astype(np.int64)
    chosen = np.append(orders.at, END)[np.minimum(place, orders.at.size)] - 600
    switched = np.full(n, NEVER)
    switched[second] = np.where(count > 1, chosen, END - HOUR)[second]
    return second, switched


@cache
def _catalogue(seed: int) -> tuple[Ints, Floats, Ints]:
    """Products by popularity: the one that each of 65,536 equal chances draws (Zipf's law), prices, brands."""
    rng = np.random.default_rng([seed, 1 << 31])
    shares = np.arange(1, PRODUCTS + 1) ** -ZIPF
    drawn = np.searchsorted(np.cumsum(shares / shares.sum()), (np.arange(1 << 16) + 0.5) / (1 << 16))
    return drawn, rng.lognormal(3.2, 0.8, PRODUCTS).round(2), rng.integers(0, BRANDS, PRODUCTS)


def _products(rng: Rng, seed: int, taste: Ints) -> Ints:
    """A product each: half the time one as popular of the category to the customer's taste (category: number modulo 25)."""
    product = _catalogue(seed)[0][rng.integers(0, 1 << 16, taste.size, dtype=np.uint16)]
    return np.where(_share(rng, taste.size, 0.5), product - product % CATEGORIES + taste, product)


def _lines(rng: Rng, seed: int, buyers: Rows) -> Rows:
    """The lines of orders, given who placed each."""
    lines = np.minimum(rng.geometric(LINE_STOP, buyers.rate.size), MAX_LINES)
    order = np.repeat(np.arange(lines.size), lines)
    product, n = _products(rng, seed, buyers.taste[order]), order.size
    quantity = np.minimum(rng.geometric(0.75, n), 10)
    worth = quantity * _catalogue(seed)[1][product] * np.array(VALUE_PRICE)[buyers.value_level[order]]
    off = np.where(_share(rng, n, np.where(buyers.price_sensitive[order], 0.6, 0.08)), rng.uniform(0.05, 0.4, n), 0.0)
    amounts = {"amount": np.round(worth * (1 - off), 2), "discount": np.round(worth * off, 2)}
    return Rows(order=order, product=product, quantity=quantity, **amounts)


def _some(rng: Rng, codes: Any, words: tuple[str, ...]) -> Text:
    """An optional text, empty now and then."""
    return Text(np.where(_share(rng, codes.size, LACKING), -1, codes), words)


def _orders(w: World) -> Table:
    amount = np.bincount(w.lines.order, w.lines.amount).round(2)
    return {"account": w.account(w.orders), "ordered_at": w.orders.at, "cancelled_at": w.orders.cancelled, "amount": amount}


def _order_lines(w: World) -> Table:
    product, brands = w.lines.product, _catalogue(w.plan.seed)[2]
    kinds = {"category": _some(w.rng, product % CATEGORIES, CATEGORY_NAMES), "brand": _some(w.rng, brands[product], BRAND_NAMES)}
    on_sale = (w.orders.at[w.lines.order] - END) / DAY + shop.LONGEST_DAYS + product * 37 % 900  # a product came out when its number says
    bought = {"quantity": w.lines.quantity, "amount": w.lines.amount, "discount": w.lines.discount, "product_age_days": on_sale.round(2)}
    return bought | kinds | {"product_id": _some(w.rng, product, PRODUCT_NAMES), "order_id": w.ids("O", w.lines.order)}


def _deliveries(w: World) -> Table:
    orders = np.arange(w.orders.at.size)
    return {"shipped_at": w.orders.shipped, "due_at": w.orders.due, "delivered_at": w.orders.delivered, "order_id": w.ids("O", orders)}


def _returns(w: World) -> Table:
    """Of each returned order the first line."""
    orders = np.arange(w.orders.at.size)
    first = w.lines.where(np.searchsorted(w.lines.order, orders))
    goods = {"quantity": first.quantity, "amount": first.amount, "return_id": w.ids("R", orders), "order_id": w.ids("O", orders)}
    times = {"returned_at": w.orders.returned, "due_at": w.orders.returned + REFUND_DAYS * DAY, "completed_at": w.orders.completed}
    return {"account": w.account(w.orders)} | times | goods


def _tickets(w: World) -> Table:
    told = {"opened_at": w.orders.opened, "resolved_at": w.orders.resolved, "complaint": w.orders.complaint}
    return {"account": w.account(w.orders)} | told


def _reviews(w: World) -> Table:
    n = w.orders.at.size
    at = w.orders.delivered + _between(w.rng, DAY, 20 * DAY, n)
    rating = np.clip(np.round(w.rng.normal(4.3 - 1.8 * w.orders.hurt, 0.9)), 1, 5)
    nps = np.clip(2 * rating + w.rng.integers(-1, 2, n), 0, 10)
    given = {"rating": np.where(_share(w.rng, n, 0.08), np.nan, rating), "nps": np.where(_share(w.rng, n, 0.5), np.nan, nps)}
    return {"account": w.account(w.orders), "reviewed_at": np.where(_share(w.rng, n, REVIEW_SHARE), at, NEVER)} | given


def _customers(w: World) -> Table:
    account = np.arange(w.owner.size)
    return {"account": account, "registered_at": w.registered, "country": _some(w.rng, w.people.country[w.owner], COUNTRIES)}


def _memberships(w: World) -> Table:
    """Level 0 at registration, the next ones with the third, eighth and twentieth order."""
    number = np.arange(w.orders.at.size) - np.searchsorted(w.orders.person, w.orders.person) + 1
    up = np.isin(number, LEVEL_ORDERS)
    risen, n = w.orders.where(up), w.owner.size
    level = np.concatenate([np.zeros(n, dtype=np.int64), np.searchsorted(LEVEL_ORDERS, number[up], side="right")])
    account = np.concatenate([np.arange(n), w.account(risen)])
    return {"account": account, "changed_at": np.concatenate([w.registered, risen.at + 60]), "level": level}


def _points(w: World) -> Table:
    """A point for each unit spent, booked a day later; with a tenth of the orders half of the last order's are spent."""
    lasts = w.orders.cancelled == NEVER
    orders, earned = w.orders.where(lasts), np.bincount(w.lines.order, w.lines.amount)[lasts].astype(np.int64)
    again = np.flatnonzero((np.diff(orders.person) == 0) & _share(w.rng, max(earned.size - 1, 0), 0.1)) + 1
    account, points = w.account(orders), np.concatenate([earned, -(earned[again - 1] // 2)])
    booked = np.concatenate([orders.at + DAY, orders.at[again]])
    return {"account": np.concatenate([account, account[again]]), "booked_at": booked, "points": points}


def _consents(w: World) -> Table:
    """Marketing by channel and profiling at registration; a withdrawal ends marketing on every channel."""
    until, n, k = w.people.consent_until[w.owner], w.owner.size, len(CHANNELS)
    ends = np.flatnonzero((until > w.registered) & (until < END))
    account = np.concatenate([np.repeat(np.arange(n), k), np.arange(n), np.repeat(ends, k)])
    profiling = np.repeat([0, 1, 0], [n * k, n, ends.size * k])
    return {
        "account": account,
        "changed_at": np.concatenate([np.repeat(w.registered, k), w.registered, np.repeat(until[ends], k)]),
        "purpose": Text(profiling, ("marketing", "profiling")),
        "channel": Text(np.where(profiling, -1, np.arange(account.size) % k), CHANNELS),
        "granted": np.concatenate([np.repeat(until > w.registered, k), _share(w.rng, n, 0.8), np.zeros(ends.size * k, dtype=bool)]),
    }


def _identities(w: World) -> Table:
    """Each account's device, e-mail, perhaps phone and tablet; second accounts on the first one's device; terminals."""
    n, rng, every = w.owner.size, w.rng, np.arange(w.owner.size)
    phone, tablet, twin = np.flatnonzero(_share(rng, n, 0.6)), np.flatnonzero(_share(rng, n, 0.4)), np.arange(w.left.size, n)
    terminals = -(-n // CUSTOMERS_PER_TERMINAL)
    guest = rng.integers(0, n, TERMINAL_CUSTOMERS * terminals)
    pairs = [
        ("customer", every, "device", every, w.registered),
        ("customer", every, "email", every, w.registered),
        ("device", phone, "phone", phone, w.registered[phone] + DAY),
        ("customer", tablet, "device", TABLETS + tablet, _in_season(rng, w.registered[tablet], END, tablet.size)),
        ("customer", twin, "device", w.owner[twin], w.registered[twin] + _wait(rng, LINK_DAYS, twin.size)),
        ("customer", guest, "device", TERMINALS + np.arange(guest.size) % terminals, _in_season(rng, w.registered[guest], END, guest.size)),
    ]
    columns: Table = {"seen_at": np.concatenate([pair[4] for pair in pairs])}
    for side, place in (("left", 0), ("right", 2)):
        kinds = np.repeat([IDENTITY_KINDS.index(pair[place]) for pair in pairs], [pair[4].size for pair in pairs])
        numbers = w.named("C", np.concatenate([pair[place + 1] for pair in pairs])).numbers
        columns |= {f"{side}_kind": Text(kinds, IDENTITY_KINDS), f"{side}_id": Ids(IDENTITY_LETTERS[kinds], numbers, 8)}
    return columns


def _contacted(w: World) -> Table:
    """The contacts sent (tier 1 to 3) and the responses; who has left opens fewer, who is moved opens and clicks."""
    sent, rng = w.contacts.where(w.contacts.tier > 0), w.rng
    n, moved, at = sent.at.size, sent.order_at < NEVER, sent.at
    opens = moved | _share(rng, n, np.where(at < w.left[sent.person], OPENED_SHARE, GONE_OPENED_SHARE))
    opened = np.where(opens, at + 60 + np.minimum(_wait(rng, 0.3, n), (sent.order_at - at) // 2), NEVER)
    clicks = moved | (opens & _share(rng, n, CLICKED_SHARE))
    clicked = np.where(clicks, opened + np.minimum(_wait(rng, 0.01, n), (sent.order_at - at) // 4), NEVER)
    last = np.max([np.where(time < END, time, 0) for time in (opened, clicked, sent.order_at)], axis=0)
    learnt = shop.arrived(rng, np.where(last > 0, last, NEVER))
    channel = np.where(sent.tier == 3, 3, sent.tier - 1 + _share(rng, n, 0.5))
    return {
        "account": w.account(sent),
        "sent_at": at,
        "delivered_at": np.where(opens | _share(rng, n, DELIVERED_SHARE), at + rng.integers(1, 60, n), NEVER),
        "opened_at": opened,
        "clicked_at": clicked,
        "converted_at": sent.order_at,
        "response_arrived_at": np.where(learnt > last, learnt, NEVER),
        "channel": _some(rng, channel, CHANNELS),
        "campaign_id": Text(at.astype("M8[s]").astype("M8[M]").astype(np.int64), CAMPAIGNS),
        "tier": sent.tier,
        "strategy": _some(rng, 2 * (sent.tier - 1) + _share(rng, n, 0.5), STRATEGIES),
        "cost": COST[sent.tier],
    }


def _active_days(w: World) -> tuple[Floats, Floats]:
    """Shop days for which each person is there, and in which interest fades after he has left, both (n,)."""
    there = np.maximum(shop_days(np.minimum(w.left, END)) - shop_days(w.people.begin), 0)
    return there, np.where(w.left < END, FADE_DAYS, 0.0)


def _signs(w: World, rate: Floats) -> Rows:
    """Poisson times at each person's rate a shop day (n,): steady while he is there, then fading."""
    there, fade = _active_days(w)
    person = np.repeat(np.arange(rate.size), w.rng.poisson(rate * (there + fade)))
    passed = w.rng.random(person.size) * (there + fade)[person]
    over = np.clip((passed - there[person]) / FADE_DAYS, 0, 0.999)  # share of the fading that is over: exponential in time
    passed = np.where(over > 0, there[person] - FADE_DAYS * np.log1p(-over), passed)
    at = moment_at(shop_days(w.people.begin)[person] + passed)
    return Rows(person=person, at=at).where(at < END)


def _coupons(w: World) -> Table:
    """Claims, far more of the price-sensitive; some are redeemed with the next order."""
    n, keen = w.left.size, w.people.price_sensitive
    claims = _signs(w, np.where(keen, COUPONS_A_MONTH * w.rng.lognormal(0, COUPONS_SIGMA, n), ORDINARY_COUPONS) / 30)
    expires, n = claims.at + COUPON_DAYS * DAY, claims.at.size
    ordered = np.append(w.orders.person * NEVER + w.orders.at, NEVER * NEVER - 1)
    upcoming = ordered[np.searchsorted(ordered, claims.person * NEVER + claims.at)] - claims.person * NEVER
    redeemed = np.where((upcoming <= expires) & _share(w.rng, n, REDEEMED_SHARE), upcoming, NEVER)
    value = w.rng.choice([5.0, 10.0, 15.0, 20.0], n)
    return {"account": w.account(claims), "claimed_at": claims.at, "redeemed_at": redeemed, "expires_at": expires, "value": value}


def _visits(w: World) -> Rows:
    """Visits to order, which end with the order (``order``: its number), and others (-1), with their numbers of events."""
    rng, booked = w.rng, np.flatnonzero(_share(w.rng, w.orders.at.size, VISITED_SHARE))
    bought = Rows(person=w.orders.person[booked], at=w.orders.at[booked], order=booked, size=3 + rng.geometric(BOUGHT, booked.size))
    wanted = w.plan.events_per_customer * w.owner.size * w.plan.days / shop.DAYS
    interest = (0.05 + np.sqrt(w.people.rate)) * rng.gamma(1.5, 1, w.left.size)
    browsing = max(wanted - bought.size.sum(), MIN_BROWSED * wanted) * BROWSED  # visits, each of 1 / BROWSED events
    others = _signs(w, interest * browsing / (interest @ sum(_active_days(w))))
    night = _share(rng, others.at.size, NIGHT_SHARE)
    others.at = np.where(night, (others.at // DAY + 1) * DAY + _between(rng, 0, 4 * HOUR, night.size), others.at)
    others.order, others.size = np.full(night.size, -1), rng.geometric(BROWSED, night.size)
    return Rows(**{name: np.concatenate([values, getattr(others, name)]) for name, values in vars(bought).items()})


def _events(w: World) -> Table:
    """The events of all visits, in order."""
    rng, visits = w.rng, _visits(w)
    first = np.cumsum(visits.size) - visits.size
    visit = np.repeat(np.arange(first.size), visits.size)
    order, left = visits.order[visit], (first + visits.size)[visit] - 1 - np.arange(visit.size)  # events left in the visit
    gap = 1 + (rng.standard_exponential(visit.size, dtype=np.float32) * GAP_SECONDS).astype(np.int64)
    clock = np.cumsum(gap) - gap
    anchor = np.where(visits.order >= 0, first + visits.size - 1, first)
    kind = DRAWN_KINDS[rng.integers(0, DRAWN_KINDS.size, visit.size, dtype=np.uint8)]
    kind[(order < 0) & (left == 0) & _share(rng, first.size, LEFT_CARTS)[visit]] = ADD
    for place, step in enumerate((PAY, CHECKOUT, ADD)):
        kind[(order >= 0) & (left == place)] = step
    product = _products(rng, w.plan.seed, w.people.taste[visits.person][visit])
    chosen = np.flatnonzero((order >= 0) & (left == 2))
    product[chosen] = w.lines.product[np.searchsorted(w.lines.order, order[chosen])]
    product[np.isin(kind, (SEARCH, CHECKOUT, PAY))] = -1
    return {
        "account": w.account(visits)[visit],
        "kind": Text(kind, BEHAVIOUR),
        "happened_at": (visits.at - clock[anchor])[visit] + clock,
        "session_id": w.ids("N", visit),
        "seconds": np.where(_share(rng, visit.size, LACKING), np.nan, gap),
        "channel": _some(rng, _share(rng, first.size, 0.55).astype(np.int8)[visit], ("web", "app")),
        "product_id": Text(product, PRODUCT_NAMES),
    }


TABLES: dict[str, Callable[[World], Table]] = {
    "orders": _orders,
    "order_lines": _order_lines,
    "returns": _returns,
    "customers": _customers,
    "events": _events,
    "contacts": _contacted,
    "coupons": _coupons,
    "tickets": _tickets,
    "reviews": _reviews,
    "deliveries": _deliveries,
    "memberships": _memberships,
    "points": _points,
    "identities": _identities,
    "consents": _consents,
}
