package envoy_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/xds"
)

func init() { envoy.ServeDelta = serveDelta }

func serveDelta(t *testing.T, ln net.Listener, onDemand bool) envoy.XDS {
	s := &server{
		Server:   xds.NewServer(xds.Config{TrustDomain: "cluster.local", Log: slog.New(slog.DiscardHandler)}),
		onDemand: onDemand,
		served:   make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.served)
		s.Serve(ctx, ln, nil)
	}()
	t.Cleanup(s.Stop)
	return s
}

type server struct {
	*xds.Server
	onDemand bool
	cancel   func()
	served   chan struct{}
}

func (s *server) Publish(w *envoy.World) {
	s.Server.Publish(published{w, s.onDemand}, time.Now())
}

// Stop ends the streams at once, as when a control plane is killed.
func (s *server) Stop() { s.cancel(); <-s.served }

// published is a World as the server sees it.
type published struct {
	*envoy.World
	onDemand bool
}

func (p published) Workload(namespace, name string) *mesh.Workload {
	return p.Snapshot().Workload(namespace, name)
}

func (p published) OnDemand(*mesh.Workload) bool { return p.onDemand }
