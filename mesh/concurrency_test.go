package mesh

import (
	"fmt"
	"sync"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

// Readers ask old and new snapshots while the mesh changes; the race detector judges.
func TestSnapshotsMayBeReadWhileTheMeshChanges(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(reviews()...)
	private := func(i int) Object {
		return Object{Object: virtualService("default", "v", 1, &networking.VirtualService{Hosts: []string{"reviews"}, ExportTo: []string{".", fmt.Sprint("ns", i%3)}})}
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				n := s.Snapshot()
				client := fmt.Sprint("ns", r)
				for svc := range n.Services(client) {
					for _, p := range svc.Ports {
						for _, e := range n.Endpoints(svc, p) {
							if e.Workload != nil {
								n.ServerMTLS(e.Workload, e.Port)
								n.Targets(e.Workload)
								n.Gateways(e.Workload)
							}
						}
					}
					n.VirtualServicesFor(client, "mesh", svc.Host)
					n.DestinationRule(client, svc)
				}
			}
		})
	}
	for i := range 200 {
		s.Apply(private(i), gatewayObject("a", "g", int64(i), map[string]string{"app": fmt.Sprint("x", i%2)}),
			plainPod("reviews-1", "10.244.0.1", map[string]string{"app": "reviews", "version": fmt.Sprint(i)}))
	}
	close(done)
	readers.Wait()
}
