package xds

import (
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weft-mesh/weft/envoy"
)

// What random histories found, as a user would have met it.

func TestAHostThatIsAskedForWhileClustersWarmUpIsToldAfterItsClusters(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "a", version: "1"})
	c := f.connect(f.token(time.Hour))
	// Envoy connects again while a cluster of its waits for endpoints: it says nothing about clusters until it has them.
	c.subscribe(envoy.Endpoints, "warming")
	c.expect(envoy.Endpoints, "-warming")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80"}, InitialResourceVersions: map[string]string{"80": "vhds"}})
	c.subscribe(envoy.VirtualHost, "*", "80/a")
	c.subscribe(envoy.Endpoints, "barrier")
	c.expect(envoy.Endpoints, "-barrier")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), InitialResourceVersions: map[string]string{"passthrough": "1", "warming": "1"}})
	c.expect(envoy.Cluster, "a@1")
	c.expect(envoy.Endpoints, "a@1")
	c.expect(envoy.VirtualHost, "80/a.default@1 alias 80/a")
	c.expect(envoy.Cluster, "-warming")
}

func TestTwoHostsThatEnvoyRefusesAreLeftAloneInTheEnd(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "bad", version: "1"}, fakeHost{name: "good", version: "1"}, fakeHost{name: "worse", version: "1"})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/bad", "80/good", "80/worse")
	c.expect(envoy.Cluster, "bad@1", "good@1", "worse@1")
	c.expect(envoy.Endpoints, "bad@1", "good@1", "worse@1")
	waiting := map[string]bool{"80/bad": true, "80/good": true, "80/worse": true}
	for n := 0; len(waiting) > 0; n++ {
		r := c.receive(envoy.VirtualHost)
		if n > 20 {
			t.Fatalf("the twentieth response: %v", content(r))
		}
		if slices.ContainsFunc(r.Resources, func(x *discovery.Resource) bool { return x.Resource != nil && !strings.Contains(x.Name, "good") }) {
			c.nack(r, "something is wrong")
			continue
		}
		for _, x := range r.Resources {
			for _, alias := range x.Aliases {
				delete(waiting, alias)
			}
		}
		c.ack(r)
	}
	c.still()
}

func TestAListenerThatGoesAndComesBackWhileAProxyReturnsIsThere(t *testing.T) {
	f := onDemand(t, nil)
	fixed := f.mesh.sets[0]
	c := f.connect(f.token(time.Hour))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), InitialResourceVersions: map[string]string{"passthrough": "1"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Listener.TypeURL(), InitialResourceVersions: map[string]string{"l": "1"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80"}, InitialResourceVersions: map[string]string{"80": "vhds"}})
	c.still()
	// It has not asked for virtual hosts yet.
	f.push(set("fixed", 2, fixed.Resources[envoy.Cluster][0], fixed.Resources[envoy.Route][0]))
	c.expect(envoy.Listener, "-l")
	f.push(fixed)
	c.expect(envoy.Listener, "l@1")
	c.still()
}
