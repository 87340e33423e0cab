package store

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/labels"
)

// Watcher delivers every change of the store, in order, to one reader. Its
// queue has no bound: a reader that stops reading must call Stop.
type Watcher struct {
	store *Store
	mu    sync.Mutex
	queue []Event
	wake  chan struct{}
	want  func(Event) bool
}

// Watch starts with an Added event for each object that exists now and matches.
// want may be nil.
func (s *Store) Watch(want func(Event) bool) *Watcher {
	w := &Watcher{store: s, wake: make(chan struct{}, 1), want: want}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range Kinds {
		for _, o := range s.list(k.Resource(), "", labels.Everything()) {
			w.add(Event{Type: Added, Key: KeyOf(o), Object: o})
		}
	}
	s.watchers[w] = struct{}{}
	return w
}

// Next returns all events since the last call and waits while there are none.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	for {
		w.mu.Lock()
		batch := w.queue
		w.queue = nil
		w.mu.Unlock()
		if len(batch) > 0 {
			return batch, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Stop ends delivery.
func (w *Watcher) Stop() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.watchers, w)
}

func (w *Watcher) add(e Event) {
	if w.want != nil && !w.want(e) {
		return
	}
	w.mu.Lock()
	w.queue = append(w.queue, e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// notify runs under the store's lock, so all watchers see one order.
func (s *Store) notify(e Event) {
	for w := range s.watchers {
		w.add(e)
	}
}
