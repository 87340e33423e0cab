package mesh

import (
	"context"
	"time"
)

// Update is the mesh after a change.
type Update struct {
	Snapshot *Snapshot
	Changes  ChangeSet // since the Update before this one; empty in the first
}

// subscriber is one reader of Updates. Its fields belong to Store.mu.
type subscriber struct {
	changes ChangeSet
	signal  chan struct{} // something was applied
}

// wake tells the readers that something was applied; s.mu is held.
func (s *Store) wake() {
	if !s.touched {
		return
	}
	s.touched = false
	for sub := range s.subs {
		select {
		case sub.signal <- struct{}{}:
		default:
		}
	}
}

// Updates sends the mesh of this moment, and then the mesh after each change until ctx
// ends, when the channel is closed. Changes of configuration are held back until nothing was applied for
// Options.DebounceAfter, at most for Options.DebounceMax; pods, nodes and endpoints go at once, and
// where they take endpoints away, with all that was held back until then. A reader
// that is slow skips snapshots and finds all that changed in Update.Changes.
func (s *Store) Updates(ctx context.Context) <-chan Update {
	out := make(chan Update)
	sub := &subscriber{signal: make(chan struct{}, 1)}
	s.mu.Lock()
	first := s.build(true)
	s.subs[sub] = struct{}{}
	s.mu.Unlock()
	go s.follow(ctx, sub, Update{Snapshot: first}, out)
	return out
}

func (s *Store) follow(ctx context.Context, sub *subscriber, next Update, out chan<- Update) {
	defer close(out)
	defer func() {
		s.mu.Lock()
		delete(s.subs, sub)
		s.mu.Unlock()
	}()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var since time.Time // when the first of the changes that are held back came
	var seen uint64
	first, send := true, out
	for {
		select {
		case <-ctx.Done():
			return
		case send <- next:
			next, send, first = Update{}, nil, false
			continue
		case <-sub.signal:
		case <-timer.C:
			since = time.Time{}
			s.Snapshot()
		}
		s.mu.Lock()
		if !s.opts.DebounceEndpoints {
			s.build(false)
		}
		waiting := s.pending.config.Len() > 0 || s.pending.endpoints.Len() > 0
		if s.heldBack != seen && waiting { // endpoints that go at once must not prolong the wait of others
			seen = s.heldBack
			now := time.Now()
			if since.IsZero() {
				since = now
			}
			timer.Reset(max(0, min(s.opts.DebounceAfter, since.Add(s.opts.DebounceMax).Sub(now))))
		}
		if sub.changes.Len() > 0 {
			next.Snapshot = s.current
			if !first {
				next.Changes.merge(sub.changes)
			}
			sub.changes = ChangeSet{}
			send = out
		}
		s.mu.Unlock()
	}
}
