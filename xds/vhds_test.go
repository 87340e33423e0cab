package xds

import (
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weft-mesh/weft/envoy"
)

// tables is a mesh with route tables that take their virtual hosts separately.
func tables(version uint64, list ...*envoy.Resource) *envoy.Set {
	return set("s", version, append(slices.Concat(service("a", "1"), []*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "vhds"), res(envoy.Route, "8080", "vhds")}), list...)...)
}

func host(name, version string) *envoy.Resource { return res(envoy.VirtualHost, name, version) }

func TestVirtualHostsOfAllTablesComeInOneMessageAndEmptyTablesAreCompleted(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("80/b", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/a@1", "80/b@1", "-8080/~")
	c.quiet()
}

func TestADomainMayMoveBetweenVirtualHosts(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("80/b", "1"), host("8080/a", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/a@1", "80/b@1", "8080/a@1")
	f.push(tables(2, host("80/b", "2"), host("8080/a", "1")))
	c.expect(envoy.VirtualHost, "80/b@2", "-80/a")
	// A removal alone is sent as well.
	f.push(tables(3, host("80/b", "2")))
	c.expect(envoy.VirtualHost, "-8080/a")
	c.quiet()
}

func TestAClusterGoesAfterTheVirtualHostThatNamesIt(t *testing.T) {
	f := newFixture(t, nil, tables(1, append(service("b", "1"), host("80/b", "1"))...))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/b@1", "-8080/~")
	f.push(tables(2, append(service("c", "1"), host("80/c", "1"))...))
	c.expect(envoy.Cluster, "c@1")
	c.expect(envoy.Endpoints, "c@1")
	r := c.receive(envoy.VirtualHost)
	if got := content(r); !slices.Equal(got, []string{"80/c@1", "-80/b"}) {
		t.Fatal(got)
	}
	c.quiet() // b stays until the virtual hosts are confirmed
	c.ack(r)
	c.expect(envoy.Cluster, "-b")
	c.quiet()
}

func TestATableThatGoesKeepsItsVirtualHostsToTheEnd(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("8080/a", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/a@1", "8080/a@1")
	less := set("s", 2, slices.Concat(service("a", "1"), []*envoy.Resource{res(envoy.Listener, "l", "2"), res(envoy.Route, "80", "vhds"), host("80/a", "1")})...)
	f.push(less)
	c.expect(envoy.Listener, "l@2")
	c.expect(envoy.Route, "-8080")
	c.expect(envoy.VirtualHost, "-8080/a")
	c.quiet()
}

func TestATableThatIsAskedForLaterGetsItsVirtualHosts(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("9090/a", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/a@1", "9090/a@1", "-8080/~")
	// Envoy has no use for "9090/a" before it has the table, and does not ask for virtual hosts again.
	f.push(tables(2, host("80/a", "1"), host("9090/a", "1"), res(envoy.Listener, "9090", "1"), res(envoy.Route, "9090", "vhds"), res(envoy.Route, "9091", "vhds")))
	c.expect(envoy.Listener, "9090@1")
	c.subscribe(envoy.Route, "9090", "9091", "9092")
	c.expect(envoy.Route, "9090@vhds", "9091@vhds", "-9092")
	c.expect(envoy.VirtualHost, "9090/a@1", "-9091/~")
	// One that comes into being when it was asked for already.
	f.push(tables(3, host("80/a", "1"), host("9090/a", "1"), res(envoy.Listener, "9090", "1"), res(envoy.Route, "9090", "vhds"), res(envoy.Route, "9091", "vhds"), res(envoy.Route, "9092", "vhds")))
	c.expect(envoy.Route, "9092@vhds")
	c.expect(envoy.VirtualHost, "-9092/~")
	c.quiet()
}

func TestAProxyThatReconnectsIsSentNoVirtualHostsThatItHas(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("80/b", "2"), host("8080/new", "1")))
	c := f.connect(f.token(time.Hour))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), InitialResourceVersions: map[string]string{"a": "1"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80", "8080"}, InitialResourceVersions: map[string]string{"80": "vhds", "8080": "vhds"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.VirtualHost.TypeURL(), InitialResourceVersions: map[string]string{"80/a": "1", "80/b": "1", "80/gone": "1"}})
	c.expect(envoy.VirtualHost, "80/b@2", "8080/new@1", "-80/gone")
	c.quiet()

	again := f.connect(f.token(time.Hour))
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80", "8080"}, InitialResourceVersions: map[string]string{"80": "vhds", "8080": "vhds"}})
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.VirtualHost.TypeURL(), InitialResourceVersions: map[string]string{"80/a": "1", "80/b": "2", "8080/new": "1"}})
	again.quiet()
}

func TestAStreamThatBrokeBeforeATableWasCompletedIsMadeWhole(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("9090/a", "1"), res(envoy.Route, "9090", "vhds")))
	c := f.connect(f.token(time.Hour))
	// Envoy was sent "9090/a" before it asked for the table: it dropped it, and says that it has it. Of 8080 it never heard.
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80", "8080", "9090"}, InitialResourceVersions: map[string]string{"80": "vhds", "8080": "vhds"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.VirtualHost.TypeURL(), InitialResourceVersions: map[string]string{"80/a": "1", "9090/a": "1"}})
	c.expect(envoy.Route, "9090@vhds")
	c.expect(envoy.VirtualHost, "9090/a@1", "-8080/~")
	c.quiet()
}

func TestARejectedVirtualHostDoesNotHoldBackItsNeighboursAndRemovals(t *testing.T) {
	f := newFixture(t, nil, tables(1, host("80/a", "1"), host("80/b", "1"), host("80/c", "1"), host("8080/a", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.VirtualHost)
	c.ack(c.receive(envoy.VirtualHost))
	// b takes a domain of a, and c is bad: without a's new version b cannot be taken.
	f.push(tables(2, host("80/a", "2"), host("80/b", "2"), host("80/c", "2"), host("8080/b", "1")))
	has := map[string]string{"80/a": "1", "80/b": "1", "80/c": "1", "8080/a": "1"}
	for {
		r := c.receive(envoy.VirtualHost)
		next := make(map[string]string)
		for name, version := range has {
			next[name] = version
		}
		for _, x := range r.Resources {
			next[x.Name] = x.Version
		}
		for _, name := range r.RemovedResources {
			delete(next, name)
		}
		if next["80/c"] == "2" || next["80/b"] == "2" && next["80/a"] == "1" {
			c.nack(r, "Only unique values for domains are permitted")
		} else {
			has = next
			c.ack(r)
		}
		if f.rejects.count.Load() > 0 {
			break
		}
		if len(c.incoming) == 0 {
			eventually(t, func() bool { return f.rejects.count.Load() > 0 || len(c.incoming) > 0 })
			if len(c.incoming) == 0 {
				break
			}
		}
	}
	for len(c.incoming) > 0 {
		c.ack(<-c.incoming)
	}
	if has["80/a"] != "2" || has["80/b"] != "2" || has["80/c"] != "1" || has["8080/b"] != "1" || has["8080/a"] != "" {
		t.Errorf("the proxy has %v", has)
	}
	if l := f.rejects.list(); len(l) != 1 || l[0].Resource != "80/c" {
		t.Errorf("recorded %+v", l)
	}
}
