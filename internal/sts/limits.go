package sts

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"creto.dev"
)

const (
	// exchangeRate is how many exchanges an agent has in a second, and
	// exchangeBurst how many at once: each is recorded durably.
	exchangeRate  = rate.Limit(10)
	exchangeBurst = 100
	// maxLimited bounds the memory of agents; those that have been quiet are
	// forgotten first, which costs them nothing.
	maxLimited = 10_000
)

// limits bounds what each agent asks for.
type limits struct {
	mu     sync.Mutex // guards agents
	agents map[creto.ID]*rate.Limiter
}

func newLimits() *limits { return &limits{agents: make(map[creto.ID]*rate.Limiter)} }

// take counts one exchange, or returns how long to wait.
func (l *limits) take(agent creto.ID, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	own, ok := l.agents[agent]
	if !ok {
		if len(l.agents) >= maxLimited {
			for id, other := range l.agents {
				if other.TokensAt(now) >= exchangeBurst {
					delete(l.agents, id)
				}
			}
		}
		own = rate.NewLimiter(exchangeRate, exchangeBurst)
		l.agents[agent] = own
	}
	reservation := own.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}
