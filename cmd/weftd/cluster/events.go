package cluster

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Warning is something that a user should see where he looks: `kubectl describe` of an object.
type Warning struct {
	APIVersion, Kind, Namespace, Name string
	UID                               string // without it `kubectl describe` shows nothing
	Reason                            string // "CannotBeUsed"
	Message                           string
}

// Events turns Warnings into events, on the replica that leads. On the others they are dropped: all replicas see the same.
type Events struct {
	cluster *Cluster
	log     *slog.Logger
	leading atomic.Bool
	queue   chan Warning

	mu   sync.Mutex
	said map[Warning]time.Time
}

const (
	// again is after how long a warning that still holds is written once more: events are forgotten after an hour.
	again = 30 * time.Minute
	// maxMessage is what the API server takes.
	maxMessage = 1024
	// maxSaid bounds what is remembered.
	maxSaid = 10_000
)

// NewEvents prepares Events. Leadership.Events makes it write.
func (c *Cluster) NewEvents(log *slog.Logger) *Events {
	return &Events{cluster: c, log: log, queue: make(chan Warning, 256), said: map[Warning]time.Time{}}
}

// Warn writes an event unless it was written lately. It never waits; a nil Events does nothing.
func (e *Events) Warn(w Warning) {
	if e == nil || !e.leading.Load() || w.UID == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if at, ok := e.said[w]; ok && time.Since(at) < again {
		return
	}
	if len(e.said) >= maxSaid {
		clear(e.said)
	}
	select {
	case e.queue <- w:
		e.said[w] = time.Now()
	default: // an event is worth no memory: the log has it, and it comes again
	}
}

// run writes until ctx ends.
func (e *Events) run(ctx context.Context) {
	e.leading.Store(true)
	defer e.leading.Store(false)
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-e.queue:
			if err := e.write(ctx, w); err != nil && ctx.Err() == nil {
				e.log.Debug("an event could not be written", "object", w.Kind+" "+w.Namespace+"/"+w.Name, "error", err)
			}
		}
	}
}

func (e *Events) write(ctx context.Context, w Warning) error {
	now, namespace := metav1.Now(), w.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of cluster-scoped objects are
	}
	if len(w.Message) > maxMessage {
		w.Message = w.Message[:maxMessage-3] + "..."
	}
	_, err := e.cluster.core.Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "weft-", Namespace: namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: w.APIVersion, Kind: w.Kind, Namespace: w.Namespace, Name: w.Name, UID: types.UID(w.UID)},
		Type:           corev1.EventTypeWarning,
		Reason:         w.Reason,
		Message:        w.Message,
		Source:         corev1.EventSource{Component: "weftd"},
		FirstTimestamp: now,
		LastTimestamp:  now,
		Count:          1,
	}, metav1.CreateOptions{})
	return err
}
