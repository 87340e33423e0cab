package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

func TestANewProxyGetsEverythingItAsksFor(t *testing.T) {
	f := newFixture(t, nil,
		set("outbound", 1, slices.Concat(service("a", "1"), service("b", "1"), []*envoy.Resource{res(envoy.Route, "80", "1")})...),
		set("workload", 1, res(envoy.Cluster, "inbound", "1"), res(envoy.Listener, "virtualInbound", "1")))
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	r := c.receive(envoy.Cluster)
	if got := content(r); !slices.Equal(got, []string{"a@1", "b@1", "inbound@1"}) {
		t.Errorf("clusters %v", got)
	}
	if !strings.HasPrefix(r.ControlPlane.GetIdentifier(), "weftd") {
		t.Errorf("control plane %q", r.ControlPlane.GetIdentifier())
	}
	c.ack(r)
	c.subscribe(envoy.Endpoints, "a", "b")
	c.expect(envoy.Endpoints, "a@1", "b@1")
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "virtualInbound@1")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@1")
	c.quiet()
}

func TestAnEmptyMeshIsAnAnswerToo(t *testing.T) {
	f := newFixture(t, nil)
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster)
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener)
	c.quiet()
}

func TestAChangeSendsOnlyWhatChangedMakeBeforeBreak(t *testing.T) {
	old := set("s", 1, slices.Concat(service("a", "1"), service("b", "1"), service("z", "1"),
		[]*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Listener, "m", "1"), res(envoy.Route, "80", "1"), res(envoy.Route, "81", "1")})...)
	f := newFixture(t, nil, old)
	c := f.connect(f.token(time.Hour))
	c.start(f)
	// a is new, b stays, z goes; a listener and a route change.
	f.push(set("s", 2, slices.Concat(service("b", "1"), service("c", "1"), service("z", "1")[:0],
		[]*envoy.Resource{res(envoy.Cluster, "a", "2"), res(envoy.Endpoints, "a", "1"), res(envoy.Listener, "l", "2"), res(envoy.Route, "80", "2"), res(envoy.Route, "81", "1")})...))
	c.expect(envoy.Cluster, "a@2", "c@1")
	// a's endpoints did not change, but Envoy waits for them since its cluster did.
	c.expect(envoy.Endpoints, "a@1", "c@1")
	c.expect(envoy.Listener, "l@2")
	c.expect(envoy.Route, "80@2")
	c.expect(envoy.Listener, "-m")
	c.expect(envoy.Cluster, "-z")
	c.quiet()
}

func TestNothingIsRemovedBeforeItsSuccessorsAreConfirmed(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, append(service("old", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "1"))...))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(set("s", 2, append(service("new", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "2"))...))
	c.expect(envoy.Cluster, "new@1")
	c.expect(envoy.Endpoints, "new@1")
	r := c.receive(envoy.Route)
	// The route is not confirmed: the old cluster must stay. An answer of another type proves that nothing was sent.
	c.subscribe(envoy.Endpoints, "barrier")
	c.expect(envoy.Endpoints, "-barrier")
	c.ack(r)
	c.expect(envoy.Cluster, "-old")
	c.quiet()
}

func TestASlowProxyGetsTheNewestStateOnce(t *testing.T) {
	state := func(v string) *envoy.Set {
		return set("s", 1, append(service("a", v), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", v))...)
	}
	f := newFixture(t, nil, state("1"))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(state("2"))
	held := c.receive(envoy.Cluster)
	c.expect(envoy.Endpoints, "a@2")
	r := c.receive(envoy.Route)
	c.ack(r)
	for v := 3; v < 10; v++ {
		f.push(state(fmt.Sprint(v)))
	}
	// Endpoints break nothing and may pass; routes wait for the clusters.
	for {
		r := c.receive(envoy.Endpoints)
		c.ack(r)
		if content(r)[0] == "a@9" {
			break
		}
	}
	c.ack(held)
	c.expect(envoy.Cluster, "a@9")
	c.expect(envoy.Endpoints, "a@9")
	c.expect(envoy.Route, "80@9")
	c.quiet()
}

func TestAProxyThatReconnectsIsSentNothingThatItHas(t *testing.T) {
	now := set("s", 1, slices.Concat(service("a", "1"), service("b", "1"), []*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "1")})...)
	f := newFixture(t, nil, now)
	c := f.connect(f.token(time.Hour))
	all := map[string]string{"a": "1", "b": "1"}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), InitialResourceVersions: all})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"a", "b"}, InitialResourceVersions: all})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Listener.TypeURL(), InitialResourceVersions: map[string]string{"l": "1"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80"}, InitialResourceVersions: map[string]string{"80": "1"}})
	c.quiet()
	for typ := range envoy.Secret {
		if n := value(t, f.metrics.byType[typ].sent); n != 0 {
			t.Errorf("%v %s resources were sent again", n, shortName(typ))
		}
	}
	if n := value(t, f.metrics.byType[envoy.Cluster].kept); n != 2 {
		t.Errorf("%v clusters counted as unchanged", n)
	}
	// From here on it is a stream like any other.
	f.push(set("s", 2, slices.Concat(service("a", "2"), service("b", "1"), []*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "1")})...))
	c.expect(envoy.Cluster, "a@2")
	c.expect(envoy.Endpoints, "a@2")
	c.quiet()
}

func TestAProxyThatReconnectsCatchesUp(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, slices.Concat(service("a", "2"), service("b", "1"), service("new", "1"),
		[]*envoy.Resource{res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "2")})...))
	c := f.connect(f.token(time.Hour))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), InitialResourceVersions: map[string]string{"a": "1", "b": "1", "gone": "1"}})
	r := c.receive(envoy.Cluster)
	if got := content(r); !slices.Equal(got, []string{"a@2", "new@1"}) {
		t.Fatal(got)
	}
	// b's endpoints are as before, a's cluster changed.
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"a", "b", "gone"}, InitialResourceVersions: map[string]string{"a": "2", "b": "1", "gone": "1"}})
	c.expect(envoy.Endpoints, "a@2", "new@1")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesSubscribe: []string{"80"}, InitialResourceVersions: map[string]string{"80": "1"}})
	c.expect(envoy.Route, "80@2")
	c.ack(r)
	c.expect(envoy.Cluster, "-gone")
	c.subscribe(envoy.Endpoints, "new") // what follows its cluster is what Envoy asks for later
	c.quiet()
}

func TestNamesThatDoNotExistAreAnsweredAndSentWhenTheyDo(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.subscribe(envoy.Endpoints, "later")
	c.expect(envoy.Endpoints, "-later")
	f.push(set("s", 2, append(service("a", "1"), service("later", "1")...)...))
	c.expect(envoy.Cluster, "later@1")
	c.expect(envoy.Endpoints, "later@1")
	c.quiet()
}

func TestUnsubscribingAndAskingAgain(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, slices.Concat(service("a", "1"), service("b", "1"), []*envoy.Resource{res(envoy.Route, "80", "1")})...))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesUnsubscribe: []string{"b"}})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesUnsubscribe: []string{"80"}})
	c.quiet()
	f.push(set("s", 2, res(envoy.Cluster, "a", "1"), res(envoy.Cluster, "b", "1"), res(envoy.Endpoints, "a", "2"), res(envoy.Endpoints, "b", "2"), res(envoy.Route, "80", "2")))
	c.expect(envoy.Endpoints, "a@2")
	c.quiet()
	c.subscribe(envoy.Endpoints, "b")
	c.expect(envoy.Endpoints, "b@2")
	// Asking for what was just sent is answered: the proxy may have dropped it.
	c.subscribe(envoy.Endpoints, "a")
	c.expect(envoy.Endpoints, "a@2")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@2")
	c.quiet()
}

func TestAPodThatMovesToAnotherScopeGetsTheDifferenceOnly(t *testing.T) {
	f := newFixture(t, nil, set("outbound/v1", 1, slices.Concat(service("a", "1"), service("b", "1"))...), set("own", 1, res(envoy.Cluster, "own", "1")))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(set("outbound/v2", 1, slices.Concat(service("b", "1"), service("c", "1"))...), f.mesh.sets[1])
	c.expect(envoy.Cluster, "c@1")
	c.expect(envoy.Endpoints, "c@1")
	c.expect(envoy.Cluster, "-a")
	c.quiet()
}

func TestARejectedResourceIsNotSentAgainUntilItChanges(t *testing.T) {
	state := func(l, other string) *envoy.Set {
		return set("s", 1, append(service("a", other), res(envoy.Listener, "l", l), res(envoy.Listener, "m", "1"))...)
	}
	f := newFixture(t, nil, state("1", "1"))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(state("2-bad", "1"))
	c.nack(c.receive(envoy.Listener), "Error adding/updating listener(s) l: no such filter")
	c.quiet()
	f.push(state("2-bad", "2"))
	c.expect(envoy.Cluster, "a@2")
	c.expect(envoy.Endpoints, "a@2")
	c.quiet()

	list := f.rejects.list()
	if len(list) != 1 || list[0].Resource != "l" || list[0].Version != "2-bad" || list[0].LastGood != "1" || list[0].Proxy != "reviews-1.default" ||
		list[0].Error != "Error adding/updating listener(s) l: no such filter" || list[0].Causes[0].Name != "cause-of-l" {
		t.Errorf("recorded: %+v", list)
	}
	if n := value(t, f.metrics.byType[envoy.Listener].rejects); n != 1 {
		t.Errorf("%v rejections counted", n)
	}

	f.push(state("3-good", "2"))
	c.expect(envoy.Listener, "l@3-good")
	c.quiet()
}

func TestARejectedResourceDoesNotHoldBackItsNeighbours(t *testing.T) {
	state := func(v string) *envoy.Set {
		var list []*envoy.Resource
		for i := range 9 {
			list = append(list, res(envoy.Route, fmt.Sprint(8000+i), v))
		}
		return set("s", 1, list...)
	}
	for _, message := range []string{"Proto constraint validation failed (RouteValidationError)", "route 8004 is no good"} {
		t.Run(message, func(t *testing.T) {
			f := newFixture(t, nil, state("1"))
			c := f.connect(f.token(time.Hour))
			c.start(f)
			f.push(state("2"))
			// As in Envoy, a response with 8004 in it has no effect at all.
			has := make(map[string]string)
			rejected := 0
			for len(has) < 8 || rejected == 0 || f.rejects.count.Load() == 0 {
				r := c.receive(envoy.Route)
				names := content(r)
				if slices.Contains(names, "8004@2") {
					rejected++
					c.nack(r, message)
				} else {
					for _, n := range names {
						has[n] = r.Nonce
					}
					c.ack(r)
				}
				if rejected > 5 {
					t.Fatalf("rejected %d times, delivered %v", rejected, has)
				}
				if len(has) == 8 {
					eventually(t, func() bool { return f.rejects.count.Load() == 1 || len(c.incoming) > 0 })
				}
			}
			c.quiet()
			if l := f.rejects.list(); len(l) != 1 || l[0].Resource != "8004" {
				t.Errorf("recorded %+v", l)
			}
		})
	}
}

func TestANewProxyGetsTheLastGoodVersionAndTheSuspectAlone(t *testing.T) {
	state := func(v string) *envoy.Set {
		return set("s", 1, append(service("a", "1"), res(envoy.Listener, "l", v), res(envoy.Listener, "m", "1"))...)
	}
	f := newFixture(t, nil, state("1"))
	f.mesh.pods["default/reviews-2"] = pod("reviews-2", "uid-2")
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(state("2"))
	c.nack(c.receive(envoy.Listener), "l: bad")
	c.quiet()

	n := f.connect(f.issuer.Token(t, "default", "reviews", "reviews-2", "uid-2", time.Hour))
	n.subscribe(envoy.Cluster)
	n.expect(envoy.Cluster, "a@1")
	n.subscribe(envoy.Listener)
	n.expect(envoy.Listener, "l@1", "m@1")
	r := n.receive(envoy.Listener)
	if got := content(r); !slices.Equal(got, []string{"l@2"}) {
		t.Fatal(got)
	}
	n.nack(r, "l: bad")
	n.quiet()
	if l := f.rejects.list(); len(l) != 1 || l[0].Proxies != 2 {
		t.Errorf("recorded %+v", l)
	}

	// The first one connects again with its last good version: it has said no, and is not asked again.
	again := f.connect(f.token(time.Hour))
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Listener.TypeURL(), InitialResourceVersions: map[string]string{"l": "1", "m": "1"}})
	again.quiet()

	// A proxy that takes it shows that the resource is not to blame.
	third := f.connect(f.issuer.Token(t, "default", "reviews", "reviews-2", "uid-2", time.Hour))
	third.subscribe(envoy.Listener)
	third.expect(envoy.Listener, "l@1", "m@1")
	third.expect(envoy.Listener, "l@2")
	third.quiet()
	if f.rejects.count.Load() != 0 {
		t.Error("still a suspect")
	}
}

func TestOnlyOneResponseOfATypeIsUnderWay(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect(f.token(time.Hour))
	nothing := func(n string) {
		t.Helper()
		c.subscribe(envoy.Endpoints, n)
		c.expect(envoy.Endpoints, "-"+n)
	}
	c.subscribe(envoy.Cluster)
	first := c.receive(envoy.Cluster)
	f.push(set("s", 2, service("a", "2")...))
	nothing("barrier-1")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Cluster.TypeURL(), ResponseNonce: "stale"})
	nothing("barrier-2")
	c.ack(first)
	c.expect(envoy.Cluster, "a@2")
}

func TestAProxyWaitsForTheNewsOfItsPod(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect(f.issuer.Token(t, "default", "reviews", "late", "uid-9", time.Hour))
	c.subscribe(envoy.Cluster)
	// Another pod of the same name is not the one that waits.
	next := &fakeMesh{pods: map[string]*mesh.Workload{"default/late": pod("late", "uid-8")}, sets: f.mesh.sets}
	f.Publish(next, time.Now())
	if len(f.connected()) != 0 {
		t.Fatal("connected as another pod")
	}
	next = &fakeMesh{pods: map[string]*mesh.Workload{"default/late": pod("late", "uid-9")}, sets: f.mesh.sets}
	f.Publish(next, time.Now())
	c.expect(envoy.Cluster, "a@1")

	// The pod goes, and its stream with it.
	f.Publish(&fakeMesh{sets: f.mesh.sets}, time.Now())
	if err := c.ends(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("ended with %v", err)
	}
}

func TestAPodThatNeverShowsUpIsToldSo(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.PodTimeout = 50 * time.Millisecond })
	c := f.connect(f.issuer.Token(t, "default", "reviews", "nobody", "uid-9", time.Hour))
	c.subscribe(envoy.Cluster)
	if err := c.ends(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "default/nobody") {
		t.Errorf("ended with %v", err)
	}
}

func TestAProxyThatDoesNotReadOrAnswerIsCutOff(t *testing.T) {
	var list []*envoy.Resource
	for i := range 2000 {
		list = append(list, service(fmt.Sprintf("c%04d", i), strings.Repeat("x", 20000))...)
	}
	for name, change := range map[string]func(*Config){
		"read":   func(c *Config) { c.SendTimeout = 200 * time.Millisecond },
		"answer": func(c *Config) { c.AnswerTimeout = 200 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, change, set("s", 1, list...))
			stream, err := discovery.NewAggregatedDiscoveryServiceClient(f.dial(true)).DeltaAggregatedResources(withToken(t, f.token(time.Hour)))
			if err != nil {
				t.Fatal(err)
			}
			r := &discovery.DeltaDiscoveryRequest{Node: testNode(), TypeUrl: envoy.Cluster.TypeURL()}
			for range map[string]int{"read": 2, "answer": 1}[name] {
				if err := stream.Send(r); err != nil {
					t.Fatal(err)
				}
				r = &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"*"}}
			}
			eventually(t, func() bool { return value(t, f.metrics.timeouts) == 1 && len(f.connected()) == 0 })
		})
	}
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 10 s")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestAResourceThatMovesBetweenScopesIsNotRemoved(t *testing.T) {
	f := newFixture(t, nil, set("x", 1, res(envoy.Cluster, "a", "1"), res(envoy.Cluster, "b", "1")), set("y", 1, res(envoy.Cluster, "c", "1")))
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1", "b@1", "c@1")
	f.push(set("x", 2, res(envoy.Cluster, "a", "1")), set("y", 2, res(envoy.Cluster, "b", "2"), res(envoy.Cluster, "c", "1")))
	c.expect(envoy.Cluster, "b@2")
	c.quiet()
}

// Envoy confirms no clusters while one of them waits for endpoints, so a server that waits for that before it says that there are none, waits for ever.
func TestAChangedClusterWhoseEndpointsVanishedMeanwhileIsToldSo(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	f.push(set("s", 2, res(envoy.Cluster, "a", "1"), res(envoy.Endpoints, "a", "2")))
	endpoints := c.receive(envoy.Endpoints)
	f.push(set("s", 3, res(envoy.Cluster, "a", "2"), res(envoy.Endpoints, "a", "2")))
	clusters := c.receive(envoy.Cluster) // it waits for endpoints now
	f.push(set("s", 4, res(envoy.Cluster, "a", "3")))
	c.ack(endpoints)
	c.expect(envoy.Endpoints, "-a")
	c.ack(clusters)
	c.expect(envoy.Cluster, "a@3")
}

// A subset that goes and comes back within a round trip: Envoy's unsubscription arrives when its cluster is there again. A route to a cluster
// that waits for endpoints is a 503.
func TestEndpointsFollowTheirClusterWhateverEnvoyIsSubscribedTo(t *testing.T) {
	state := func(version uint64, subset bool, route string) *envoy.Set {
		list := append(service("a", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", route))
		if subset {
			list = append(list, service("v2", "1")...)
		}
		return set("s", version, list...)
	}
	f := newFixture(t, nil, state(1, true, "1"))
	c := f.connect(f.token(time.Hour))
	c.start(f)
	for round := range 3 {
		f.push(state(uint64(2+3*round), false, fmt.Sprint("without ", round)))
		c.expect(envoy.Route, fmt.Sprintf("80@without %d", round))
		c.expect(envoy.Cluster, "-v2")
		c.quiet()
		f.push(state(uint64(3+3*round), true, fmt.Sprint("with ", round)))
		clusters, endpoints := c.receive(envoy.Cluster), c.receive(envoy.Endpoints)
		if got := content(endpoints); !slices.Equal(got, []string{"v2@1"}) {
			t.Fatalf("behind the cluster: %v", got)
		}
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesUnsubscribe: []string{"v2"}})
		// It changes before Envoy asks for it again.
		if round == 2 {
			c.ack(clusters)
			c.ack(endpoints)
			c.expect(envoy.Route, "80@with 2")
			next := state(12, true, "after")
			next.Resources[envoy.Cluster][1] = res(envoy.Cluster, "v2", "2")
			f.push(next)
			c.expect(envoy.Cluster, "v2@2")
			c.expect(envoy.Endpoints, "v2@1")
			c.expect(envoy.Route, "80@after")
			break
		}
		c.ack(clusters)
		c.ack(endpoints)
		c.expect(envoy.Route, fmt.Sprintf("80@with %d", round))
		c.subscribe(envoy.Endpoints, "v2")
		c.expect(envoy.Endpoints, "v2@1")
		c.quiet()
	}
}

func TestEndpointsThatEnvoyDroppedAreSentWhenItAsks(t *testing.T) {
	rest := []*envoy.Resource{res(envoy.Listener, "l", "1")}
	f := newFixture(t, nil, set("s", 1, append(service("a", "1"), rest...)...))
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	// Envoy is busy with its first clusters, and has not asked for endpoints, when there is one more.
	f.push(set("s", 2, append(slices.Concat(service("a", "1"), service("b", "1")), rest...)...))
	c.expect(envoy.Cluster, "b@1")
	c.receive(envoy.Endpoints) // dropped, without a word
	c.subscribe(envoy.Endpoints, "a", "b")
	c.expect(envoy.Endpoints, "a@1", "b@1")
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "l@1")
	f.push(set("s", 3, append(slices.Concat(service("a", "2"), service("b", "1")), rest...)...))
	c.expect(envoy.Cluster, "a@2")
	c.expect(envoy.Endpoints, "a@2")
	c.quiet()
}
