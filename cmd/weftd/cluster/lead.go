package cluster

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"

	"github.com/weft-mesh/weft/identity"
)

// Leadership is what one of several replicas does.
type Leadership struct {
	Namespace string // of the Lease and of the control plane's Service
	Revision  string // whose webhook configurations are kept; replicas of a revision share a Lease
	Identity  string // of this replica: the pod's name
	Authority *identity.Authority
	Services  []string        // names of the control plane's Services, which webhook configurations refer to
	Serving   <-chan struct{} // closed when this replica answers the webhooks
	Events    *Events
	Log       *slog.Logger
}

// The Lease's times are those of Kubernetes' own controllers.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Lead takes part in the election until ctx ends, and does the leader's work while this
// replica leads. It gives the lease back at the end.
func (c *Cluster) Lead(ctx context.Context, l Leadership) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: l.Namespace, Name: "weftd-" + l.Revision},
		Client:     c.leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.Identity},
	}
	for ctx.Err() == nil {
		var work sync.WaitGroup
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			LeaseDuration:   leaseDuration,
			RenewDeadline:   renewDeadline,
			RetryPeriod:     retryPeriod,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					l.Log.Info("this replica leads", "lease", lock.LeaseMeta.Name)
					work.Go(func() { c.keepRoots(ctx, l) })
					work.Go(func() { c.keepBundles(ctx, l) })
					work.Go(func() { l.Events.run(ctx) })
				},
				OnStoppedLeading: func() {
					if ctx.Err() == nil {
						l.Log.Warn("this replica leads no more: the lease could not be renewed", "lease", lock.LeaseMeta.Name)
					}
				},
			},
		})
		if err != nil {
			return err
		}
		elector.Run(ctx)
		work.Wait()
	}
	return nil
}

// queue holds names of objects that must be looked at. A failure comes again, later and later.
type queue = workqueue.TypedRateLimitingInterface[string]

func newQueue() queue {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute))
}

// work calls one for each name until ctx ends.
func work(ctx context.Context, q queue, log *slog.Logger, what string, one func(ctx context.Context, name string) error) {
	defer context.AfterFunc(ctx, q.ShutDown)()
	for {
		name, stopped := q.Get()
		if stopped {
			return
		}
		err := one(ctx, name)
		switch {
		case err == nil || errors.Is(err, context.Canceled):
			q.Forget(name)
		default:
			log.Warn(what+" could not be written; trying again", "object", name, "error", err)
			q.AddRateLimited(name)
		}
		q.Done(name)
	}
}

// followAuthority calls f at once and after each change of the authority, until ctx ends.
func (l *Leadership) followAuthority(ctx context.Context, f func()) {
	for {
		changed := l.Authority.Changed()
		f()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// lean drops what nobody here reads: managedFields are half of an object.
func lean(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return o, nil
}
