package kube

import (
	"context"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/mesh"
)

// What a mesh of 1000 services with 5 pods each costs to read and to hold: by this package, and by
// client-go's informers (which controller-runtime's cache is made of), with the same transform, that feed the same store.
func BenchmarkAThousandServices(b *testing.B) {
	api := kubernetes.StartAPIServer(b)
	api.Fill(1000, 5)
	whole := func(s *mesh.Store) bool {
		n, snap := 0, s.Snapshot()
		for range snap.Workloads() {
			n++
		}
		return n == 5000 && len(snap.VisibleServices("")) == 1001
	}
	measure := func(b *testing.B, read func(context.Context, *mesh.Store) (wait func(), keep any)) {
		for range b.N {
			before := heap()
			ctx, cancel := context.WithCancel(context.Background())
			store := mesh.NewStore(mesh.Options{})
			began := time.Now()
			wait, keep := read(ctx, store)
			wait()
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/sync")
			for !whole(store) {
				time.Sleep(time.Millisecond)
			}
			b.ReportMetric(float64(heap()-before)/1e6, "MB-held")
			runtime.KeepAlive(keep)
			cancel()
		}
	}
	b.Run("here", func(b *testing.B) {
		measure(b, func(ctx context.Context, store *mesh.Store) (func(), any) {
			s, err := New(Config{REST: api.Config(), Store: store})
			if err != nil {
				b.Fatal(err)
			}
			go s.Run(ctx)
			return func() { <-s.Synced() }, s
		})
	})
	b.Run("informers", func(b *testing.B) {
		measure(b, func(ctx context.Context, store *mesh.Store) (func(), any) {
			s, err := New(Config{REST: api.Config(), Store: store})
			if err != nil {
				b.Fatal(err)
			}
			var stores []cache.Store
			var synced []cache.InformerSynced
			for _, k := range []kind{services, endpointSlices, pods} {
				put := func(o any) {
					switch o := o.(type) {
					case *corev1.Pod:
						_ = store.Apply(mesh.Object{Object: o})
					case *corev1.Service:
						_ = store.Apply(mesh.Object{Object: o})
					case *discoveryv1.EndpointSlice:
						_ = store.Apply(mesh.Object{Object: o})
					}
				}
				sink := newSink(s, k)
				kept, follow := cache.NewInformerWithOptions(cache.InformerOptions{
					ListerWatcher: s.server.listWatch(k),
					Handler:       cache.ResourceEventHandlerFuncs{AddFunc: put},
					Transform:     sink.Transformer(),
				})
				go follow.RunWithContext(ctx)
				stores, synced = append(stores, kept), append(synced, follow.HasSynced)
			}
			return func() { cache.WaitForCacheSync(ctx.Done(), synced...) }, stores
		})
	})
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
