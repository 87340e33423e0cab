package xds

import (
	"context"
	"testing"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

func TestProxiesLeaveOneAfterTheOther(t *testing.T) {
	f := newFixture(t, nil, set("all", 1, service("a", "1")...))
	const n, over = 4, 800 * time.Millisecond
	ended := make(chan time.Time, n)
	for range n {
		c := f.connect(f.token(time.Hour))
		c.subscribe(envoy.Cluster)
		c.expect(envoy.Cluster, "a@1")
		go func() { <-c.failed; ended <- time.Now() }()
	}
	drained := make(chan struct{})
	began := time.Now()
	go func() { f.Server.Drain(context.Background(), over); close(drained) }()

	first := <-ended
	if wait := first.Sub(began); wait < over/4 {
		t.Errorf("the first stream ended after %s: load balancers have not noticed yet", wait)
	}
	last := first
	for range n - 1 {
		last = <-ended
	}
	if spread := last.Sub(first); spread < over/4 {
		t.Errorf("all streams ended within %s: the other replicas get them all at once", spread)
	}
	<-drained
	if took := time.Since(began); took > over+200*time.Millisecond {
		t.Errorf("draining took %s although nobody is connected", took)
	}
	late := f.connect(f.token(time.Hour)) // the news has not reached everybody
	late.subscribe(envoy.Cluster)
	late.expect(envoy.Cluster, "a@1")
}
