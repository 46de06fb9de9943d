"""The life of a task, as pure functions: (task, event) → (task, effects). No I/O, no clock.

```
            admit                    claim                 end
 (accepted) ─────▶ pending ─turn─▶ queued ─────▶ running ─────▶ succeeded │ failed │ cancelled │ timed_out
              └──────────────────▶  ▲  │            │
                                    │  ├─cancel─▶ cancelled
                                    │  └─refuse─▶ failed
                                    ├──lost, handed or taken back──┤
                                    └──wake── waiting ◀──park──────┘
                                                 └─cancel─▶ cancelled
```

A task with a route does not become `queued` by itself: it stays `pending` until an orchestrator outside has
named the next service, or has said that there is none. Each of its hops ends in `pending` again; see `hops`.

An event that does not fit raises an error and changes nothing: `FencedOutError` for an attempt that is not
the current one, `TaskFinishedError` for a request to a task that has ended. A run's journal belongs to its
task: it is kept from attempt to attempt, and deleted when the task succeeds; see `retries`.

Each module has the events of one part of this life: `session_turns` until the task is queued, `due_attempts`
until an instance claims it, `owned_attempts` what this instance reports, `lost_attempts` what becomes of an
attempt that it does not finish, and `interventions` what people ask for.
"""

from llama_deploy.control_plane.decisions.lifecycle.due_attempts import (
    claim,
    dispatch_again,
    is_held_back,
    refuse,
    wake,
)
from llama_deploy.control_plane.decisions.lifecycle.interventions import cancel, check_open, move, start_again
from llama_deploy.control_plane.decisions.lifecycle.lost_attempts import (
    drop,
    end_blocked,
    hand_back,
    lose,
    move_on,
    take_back,
)
from llama_deploy.control_plane.decisions.lifecycle.owned_attempts import (
    HARMLESS_AFTER,
    check_owner,
    end,
    failed,
    is_repeated,
    journal,
    take_events,
)
from llama_deploy.control_plane.decisions.lifecycle.session_turns import (
    Admission,
    admit,
    lets_pass,
    take_turn,
)

__all__ = [
    "HARMLESS_AFTER",
    "Admission",
    "admit",
    "cancel",
    "check_open",
    "check_owner",
    "claim",
    "dispatch_again",
    "drop",
    "end",
    "end_blocked",
    "failed",
    "hand_back",
    "is_held_back",
    "is_repeated",
    "journal",
    "lets_pass",
    "lose",
    "move",
    "move_on",
    "refuse",
    "start_again",
    "take_back",
    "take_events",
    "take_turn",
    "wake",
]
