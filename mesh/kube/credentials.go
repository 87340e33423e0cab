package kube

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/mesh"
)

// credentials follows the Secrets that gateways need, each by a watch of its own, as kubelet does: a namespace's other Secrets (a Helm release has a
// megabyte) are nobody's business here, and the right to read them is not needed.
type credentials struct {
	source    *Source
	followers map[mesh.Key]*running
	refused   map[mesh.Key]chan struct{} // closed when the API server has said no
	settled   chan struct{}              // closed when those that were wanted at the start are answered
}

func newCredentials(s *Source) *credentials {
	return &credentials{source: s, followers: map[mesh.Key]*running{}, refused: map[mesh.Key]chan struct{}{}, settled: make(chan struct{})}
}

// run ends with ctx.
func (c *credentials) run(ctx context.Context) {
	for first := true; ; first = false {
		wanted, changed := c.source.config.Store.Credentials()
		c.follow(ctx, wanted)
		if first {
			for key, r := range c.followers {
				select {
				case <-r.sink.synced:
				case <-c.refused[key]:
				case <-ctx.Done():
				}
			}
			close(c.settled)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, r := range c.followers {
				r.stop()
			}
			return
		}
	}
}

// follow starts and stops followers.
func (c *credentials) follow(ctx context.Context, wanted []mesh.Key) {
	keep := make(map[mesh.Key]bool, len(wanted))
	for _, key := range wanted {
		keep[key] = true
		if c.followers[key] == nil {
			c.start(ctx, key)
		}
	}
	for key, r := range c.followers {
		if !keep[key] {
			r.stop()
			delete(c.followers, key)
			delete(c.refused, key)
			c.source.mu.Lock()
			r.sink.clear()
			c.source.mu.Unlock()
			c.source.config.Store.Delete(key) // what is said about one that could not be read goes too
		}
	}
}

func (c *credentials) start(ctx context.Context, key mesh.Key) {
	s := c.source
	k := kind{name: "Secret", gvr: corev1.SchemeGroupVersion.WithResource("secrets"), namespace: key.Namespace,
		fields: fields.OneTermEqualSelector("metadata.name", key.Name).String()}
	f := s.newFollower(k)
	refused := make(chan struct{})
	refuse := sync.OnceFunc(func() { close(refused) })
	list := s.server.listWatch(k)
	f.listWatch = &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			out, err := list.ListWithContextFunc(ctx, o)
			if apierrors.IsForbidden(err) {
				s.config.Changing()
				s.config.Store.Unreadable(key, forbidden(key))
			}
			if err != nil && apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
				refuse() // an answer, and not a connection that broke
			}
			return out, err
		},
		WatchFuncWithContext: list.WatchFuncWithContext,
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); f.run(run) }()
	c.followers[key] = &running{follower: f, stop: func() { cancel(); <-done }}
	c.refused[key] = refused
}

// forbidden says which right is missing. The ClusterRole comes with the installation; what binds it to a namespace, with each gateway.
func forbidden(key mesh.Key) string {
	return fmt.Sprintf("this control plane may not read Secrets of namespace %s; give it the right with: "+
		"kubectl create rolebinding istiod-gateway-secrets -n %s --clusterrole=istiod-gateway-secrets --serviceaccount=istio-system:istiod", key.Namespace, key.Namespace)
}
