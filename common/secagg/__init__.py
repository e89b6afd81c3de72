"""Secure aggregation: the coordinator learns one sum over a cohort, and nothing else of any one hospital.

The protocol of Bonawitz et al. 2017 (CCS, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning"), with signed keys and pipelined to two exchanges a round; docs/security.md has the argument.
Pure: no Flower, no files, no clock. Secrets come from the operating system (`entropy`), learning randomness
from the caller.

Whom a site believes to be a hospital is its `identity.Roster`: whom its own operator has confirmed, and for
whom enough of those vouch (`vouching`).

A site calls, with `site.Member` (its name, `identity.Identity`, `identity.Roster`, `numbers.Policy`):

| when | call | sends |
|---|---|---|
| the run starts; its state is lost | `site.join(member, run, epoch)` | |
| it came back from a backup | `site.rejoin(state, epoch)` | |
| asked for its key | `site.advertise(state, member)` | `Advertisement` |
| asked to deal, alone or with a train message | `site.deal(state, member, holders)` | `Dealing` |
| a train message came | `site.review(state, member, request, payload)` | the stored reply, or None |
| trained | `site.mask(state, member, request, payload, contribution)` | `Masked` |
| asked to unmask | `site.unmask(state, member, request)` | `UnmaskAnswer` |
| asked to rehearse, in a run of its own | `rehearsal.rehearse(state, member, request)` | `Rehearsed` |
| the run ends | `state.finished(run, stored)` | |

What a site goes by in a slot, others' keys and its own demands, is frozen when it deals (`terms.Terms`).
Each transition gives a new state. The caller keeps `state.save(state)`, one row a run, and reads it with
`state.restore`, computes and replaces it inside one exclusive transaction; it sends only what is committed.
`payload` is `messages.Payload.of(weights, configuration)` over the bytes that the site itself holds.

The coordinator calls, with its own `identity.Roster`:

| when | call |
|---|---|
| a key came | `aggregator.check_advertisement(roster, run, advertisement)` |
| before a slot | `aggregator.name_holders(run, slot, advertisements)`: the same request to deal for all |
| a dealing came | `aggregator.check_dealing(roster, holders, dealing)` |
| the round starts | `aggregator.mask_requests(holders, dealings, payload, layout)`: one for each site |
| vectors come | `slot = aggregator.Slot(roster, holders, plan)`, then `slot.add(masked)` for each |
| the round's time is over | `slot.request()`: to every survivor |
| answers come | `slot.answer(answer)`, until `slot.answered`; more help against wrong ones |
| the end | `slot.finish()`: an `Outcome` with mean, weight, metrics, who dropped and who lied |

Slots are numbered from 1, each is used once, and a retry or a resume takes the next. Every message is a
frozen record of `messages`, as bytes by `encoding.dump` and `encoding.load`. Every refusal is a `SecAggError`
with a `reasons.Reason` and the site at fault; a refused transition changes nothing.
"""
