package xds

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// onDemand is a server whose proxies are told what they ask for. There are two pods of one workload, and one of another.
func onDemand(t testing.TB, change func(*Config), catalog ...fakeHost) *fixture {
	t.Helper()
	f := newFixture(t, change, set("fixed", 1, res(envoy.Cluster, "passthrough", "1"), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "vhds")))
	f.serve(catalog...)
	return f
}

func (f *fixture) serve(catalog ...fakeHost) {
	f.mesh = f.mesh.with(f.mesh.sets...)
	other := pod("ratings-1", "uid-3")
	other.ServiceAccount = "ratings"
	f.mesh.pods = map[string]*mesh.Workload{"default/reviews-1": pod("reviews-1", "uid-1"), "default/reviews-2": pod("reviews-2", "uid-2"), "default/ratings-1": other}
	f.mesh.onDemand, f.mesh.catalog = true, catalog
	f.Publish(f.mesh, time.Now())
}

// begin does what Envoy does first.
func (c *client) begin() {
	c.t.Helper()
	c.subscribe(envoy.Cluster)
	c.ack(c.receive(envoy.Cluster))
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "l@1")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@vhds")
	c.subscribe(envoy.VirtualHost)
}

// still proves that nothing more is on its way. (Barriers are routes, and routes without hosts are remembered; so each is dropped.)
func (c *client) still() {
	c.t.Helper()
	c.quiet()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Route.TypeURL(), ResourceNamesUnsubscribe: []string{fmt.Sprintf("barrier-%d", c.barriers)}})
}

func (f *fixture) second() string {
	return f.issuer.Token(f.t, "default", "reviews", "reviews-2", "uid-2", time.Hour)
}

func (f *fixture) stranger() string {
	return f.issuer.Token(f.t, "default", "ratings", "ratings-1", "uid-3", time.Hour)
}

func TestAHostThatTheAppNamesComesWithAllItNeedsInOneRound(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "a", version: "1"}, fakeHost{name: "split", version: "1", clusters: []string{"v1", "v2", "mirror"}})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.still()
	// Clusters and endpoints are not waited for, and Envoy has asked for no endpoints yet.
	c.subscribe(envoy.VirtualHost, "80/a")
	cds, eds, vhds := c.receive(envoy.Cluster), c.receive(envoy.Endpoints), c.receive(envoy.VirtualHost)
	if got := content(vhds); !slices.Equal(got, []string{"80/a.default@1 alias 80/a"}) {
		t.Fatal(got)
	}
	c.ack(cds)
	c.ack(eds)
	c.ack(vhds)
	// Envoy's subscription to the endpoints comes after they did.
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"a"}, InitialResourceVersions: map[string]string{"a": "1"}})
	c.still()
	c.subscribe(envoy.VirtualHost, "80/split.default")
	c.expect(envoy.Cluster, "mirror@1", "v1@1", "v2@1")
	c.expect(envoy.Endpoints, "mirror@1", "v1@1", "v2@1")
	c.expect(envoy.VirtualHost, "80/split.default@1")
	c.subscribe(envoy.Endpoints, "mirror", "v1", "v2")
	c.still()
	// Another of its names, and one that is known already.
	c.subscribe(envoy.VirtualHost, "80/split", "80/a")
	c.expect(envoy.VirtualHost, "80/a.default@1 alias 80/a", "80/split.default@1 alias 80/split")
	c.still()
	if d := f.Demands(); len(d) != 1 || d[0].Workload != "default/reviews" || !slices.Equal(d[0].Names[envoy.VirtualHost], []string{"80/a", "80/split.default"}) {
		t.Errorf("demands %+v", d)
	}
}

func TestAHundredNewHostsAtOnceAreEachAnsweredOnce(t *testing.T) {
	var catalog []fakeHost
	for i := range 100 {
		catalog = append(catalog, fakeHost{name: fmt.Sprintf("h%03d", i), version: "1"})
	}
	f := onDemand(t, nil, catalog...)
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	for _, h := range catalog {
		c.subscribe(envoy.VirtualHost, "80/"+h.name, "80/"+h.name+".default")
	}
	clusters, endpoints, answered := make(map[string]bool), make(map[string]bool), make(map[string]int)
	for len(answered) < 200 {
		select {
		case r := <-c.incoming:
			typ, _ := envoy.TypeOf(r.TypeUrl)
			once := make(map[string]bool)
			for _, x := range r.Resources {
				if once[x.Name] {
					t.Fatalf("%s twice in one message", x.Name)
				}
				once[x.Name] = true
				switch typ {
				case envoy.Cluster:
					clusters[x.Name] = true
				case envoy.Endpoints:
					if !clusters[x.Name] {
						t.Fatalf("endpoints of %s before its cluster", x.Name)
					}
					endpoints[x.Name] = true
				case envoy.VirtualHost:
					if name := strings.TrimSuffix(strings.TrimPrefix(x.Name, "80/"), ".default"); !endpoints[name] {
						t.Fatalf("%s before its endpoints", x.Name)
					}
					answered[x.Name]++
					for _, alias := range x.Aliases {
						answered[alias]++
					}
				}
			}
			c.ack(r)
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of 200 names answered", len(answered))
		}
	}
}

func TestWhatOneReplicaAsksForAllOfTheWorkloadGetAndNobodyElse(t *testing.T) {
	var mu sync.Mutex
	var remembered []*envoy.Demand
	f := onDemand(t, func(c *Config) {
		c.Remember = func(d *envoy.Demand) { mu.Lock(); defer mu.Unlock(); remembered = append(remembered, d) }
	}, fakeHost{name: "a", version: "1"})
	first, second, other := f.connect(f.token(time.Hour)), f.connect(f.second()), f.connect(f.stranger())
	for _, c := range []*client{first, second, other} {
		c.begin()
		c.expect(envoy.VirtualHost, "-80/~")
	}
	first.subscribe(envoy.VirtualHost, "80/a")
	for c, alias := range map[*client]string{first: " alias 80/a", second: ""} {
		c.expect(envoy.Cluster, "a@1")
		c.expect(envoy.Endpoints, "a@1")
		c.expect(envoy.VirtualHost, "80/a.default@1"+alias)
		c.still()
	}
	other.still()
	// A new pod has it from the start, and also when nobody else is there any more.
	for _, c := range []*client{first, second} {
		c.cancel()
	}
	eventually(t, func() bool { return len(f.connected()) == 1 })
	c := f.connect(f.second())
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "passthrough@1", "a@1")
	c.subscribe(envoy.Endpoints, "a")
	c.expect(envoy.Endpoints, "a@1")
	c.subscribe(envoy.Listener)
	c.expect(envoy.Listener, "l@1")
	c.subscribe(envoy.Route, "80")
	c.expect(envoy.Route, "80@vhds")
	c.subscribe(envoy.VirtualHost)
	c.expect(envoy.VirtualHost, "80/a.default@1")
	c.still()
	mu.Lock()
	defer mu.Unlock()
	if len(remembered) != 1 || !remembered[0].Has(envoy.VirtualHost, "80/a") {
		t.Errorf("to be remembered: %+v", remembered)
	}
}

func TestARecordIsLearnedBeforeAndAfterAProxyConnects(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "a", version: "1"}, fakeHost{name: "b", version: "1"})
	f.Learn((&envoy.Demand{Workload: "default/reviews"}).With(envoy.VirtualHost, "80/a", "80/"+strings.Repeat("x", maxName)))
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "passthrough@1", "a@1")
	f.Learn((&envoy.Demand{Workload: "default/reviews"}).With(envoy.VirtualHost, "80/b"))
	c.expect(envoy.Cluster, "b@1")
	c.expect(envoy.Endpoints, "b@1")
	c.still()
	f.Forget("default/reviews")
	if len(f.Demands()) != 1 {
		t.Error("a workload with a stream was forgotten")
	}
	c.cancel()
	eventually(t, func() bool { return len(f.connected()) == 0 })
	eventually(t, func() bool { f.Forget("default/reviews"); return len(f.Demands()) == 0 })
}

func TestAHostThatNobodyHasIsAnsweredAndHealsWhenItIsCreated(t *testing.T) {
	f := onDemand(t, nil)
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/later", "80/no!name")
	c.expect(envoy.VirtualHost, "80/later@stranger", "80/no!name nobody")
	f.serve(fakeHost{name: "later", version: "1"})
	c.expect(envoy.Cluster, "later@1")
	c.expect(envoy.Endpoints, "later@1")
	c.expect(envoy.VirtualHost, "80/later.default@1", "-80/later")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesSubscribe: []string{"later"}, InitialResourceVersions: map[string]string{"later": "1"}})
	c.still()
	// Removed, and created again.
	f.serve()
	c.expect(envoy.VirtualHost, "80/later@stranger", "-80/later.default")
	c.expect(envoy.Cluster, "-later")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.Endpoints.TypeURL(), ResourceNamesUnsubscribe: []string{"later"}})
	c.still()
	f.serve(fakeHost{name: "later", version: "2"})
	c.expect(envoy.Cluster, "later@1")
	c.expect(envoy.Endpoints, "later@1")
	c.expect(envoy.VirtualHost, "80/later.default@2", "-80/later")
	c.still()
}

func TestAnAppThatGoesThroughNamesGetsTheWholeTableAndIsNotHurt(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "a", version: "1"})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	answered, has := make(map[string]bool), make(map[string]bool)
	read := func() {
		t.Helper()
		select {
		case r := <-c.incoming:
			c.ack(r)
			if r.TypeUrl != envoy.VirtualHost.TypeURL() {
				return
			}
			for _, x := range r.Resources {
				answered[x.Name], has[x.Name] = true, x.Resource != nil
				for _, alias := range x.Aliases {
					answered[alias] = true
				}
			}
			for _, name := range r.RemovedResources {
				delete(has, name)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d names answered", len(answered))
		}
	}
	var names []string
	for i := range maxStrangers {
		names = append(names, fmt.Sprintf("80/scan-%04d", i))
	}
	c.subscribe(envoy.VirtualHost, names...)
	for len(answered) < len(names) {
		read()
	}
	if has["80/*"] || len(has) != maxStrangers {
		t.Fatalf("%d names have a virtual host", len(has))
	}
	for i := range 100 {
		c.subscribe(envoy.VirtualHost, fmt.Sprintf("80/more-%04d", i), fmt.Sprintf("80/more-%04d.example.com", i))
	}
	c.subscribe(envoy.VirtualHost, "80/"+strings.Repeat("long", 10000))
	for len(answered) < len(names)+200+3 { // and "80/*", and a, and the long one
		read()
	}
	for len(has) > 3 {
		read() // the strangers go
	}
	if !has["80/*"] || !has["80/a.default"] || has["80/"+strings.Repeat("long", 10000)] {
		t.Errorf("it has %v", has)
	}
	if n := value(t, f.metrics.tables); n != 1 {
		t.Errorf("%v tables counted", n)
	}
	if n := f.Demands()[0].Len(); n != maxStrangers+1 {
		t.Errorf("%d names are remembered", n)
	}
}

func TestStrangersThatAreCreatedMakeRoomForOthers(t *testing.T) {
	f := onDemand(t, nil)
	var names []string
	var catalog []fakeHost
	for i := range maxStrangers {
		names = append(names, fmt.Sprintf("80/h%04d", i))
		catalog = append(catalog, fakeHost{name: fmt.Sprintf("h%04d", i), version: "1"})
	}
	f.Learn((&envoy.Demand{Workload: "default/reviews"}).With(envoy.VirtualHost, names...))
	f.serve(catalog[0])
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.ack(c.receive(envoy.VirtualHost))
	c.subscribe(envoy.VirtualHost, "80/one-more")
	c.expect(envoy.VirtualHost, "80/one-more@stranger")
	c.subscribe(envoy.VirtualHost, "80/two-more")
	if got := content(c.receive(envoy.VirtualHost)); !slices.Contains(got, "80/*@stranger alias 80/two-more") {
		t.Errorf("got %.200v", got)
	}
}

func TestClustersAreAskedForByName(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "tcp", version: "1"})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.Cluster, "tcp")
	c.expect(envoy.Cluster, "tcp@1")
	c.expect(envoy.Endpoints, "tcp@1")
	c.subscribe(envoy.Cluster, "missing", "nonsense!")
	r := c.receive(envoy.Cluster)
	if got := content(r); !slices.Equal(got, []string{"missing@empty", "-nonsense!"}) {
		t.Fatal(got)
	}
	c.ack(r)
	c.subscribe(envoy.Cluster, "tcp")
	c.expect(envoy.Cluster, "tcp@1")
	c.still()
}

// returns does what Envoy does when it connects again.
func (c *client) returns(versions map[envoy.Type]map[string]string, clusters, hosts []string) {
	ask := func(t envoy.Type, names []string) {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: t.TypeURL(), ResourceNamesSubscribe: names, InitialResourceVersions: versions[t]})
	}
	ask(envoy.Cluster, clusters)
	var endpoints []string
	for name := range versions[envoy.Endpoints] {
		endpoints = append(endpoints, name)
	}
	slices.Sort(endpoints)
	ask(envoy.Endpoints, endpoints)
	ask(envoy.Listener, nil)
	ask(envoy.Route, []string{"80"})
	ask(envoy.VirtualHost, hosts)
}

func TestAfterARestartTheProxiesTellWhatTheyAskedFor(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "a", version: "1"}, fakeHost{name: "b", version: "1"}, fakeHost{name: "down", version: "1"}, fakeHost{name: "tcp", version: "1"},
		fakeHost{name: "others", version: "1"})
	c := f.connect(f.token(time.Hour))
	// It asked for a and tcp itself; b and the cluster others came with another replica's demand; down was asked for while no server was there.
	c.returns(map[envoy.Type]map[string]string{
		envoy.Cluster:     {"passthrough": "1", "a": "1", "b": "1", "tcp": "1", "others": "1", "gone": "1"},
		envoy.Endpoints:   {"a": "1", "b": "1", "tcp": "1", "others": "1", "gone": "1"},
		envoy.Listener:    {"l": "1"},
		envoy.Route:       {"80": "vhds"},
		envoy.VirtualHost: {"80/a.default": "1", "80/b.default": "1", "80/nobody": "stranger", "80/refused": "-"},
	}, []string{"*", "tcp"}, []string{"*", "80/a", "80/down", "80/nobody"})
	c.expect(envoy.Cluster, "down@1")
	c.expect(envoy.Endpoints, "down@1")
	// A request for a may have been on its way when the last stream broke: it is let go, without a resource.
	c.expect(envoy.VirtualHost, "80/down.default@1 alias 80/down", "80/a nobody")
	c.expect(envoy.Cluster, "-gone")
	c.still()
	d := f.Demands()
	if len(d) != 1 || !slices.Equal(d[0].Names[envoy.VirtualHost], []string{"80/a", "80/b.default", "80/down", "80/nobody"}) ||
		!slices.Equal(d[0].Names[envoy.Cluster], []string{"others", "tcp"}) {
		t.Errorf("rebuilt: %+v", d[0].Names)
	}
	// A second replica of it finds everything as it left it.
	again := f.connect(f.second())
	again.returns(map[envoy.Type]map[string]string{
		envoy.Cluster:     {"passthrough": "1", "a": "1", "b": "1", "tcp": "1", "others": "1", "down": "1"},
		envoy.Endpoints:   {"a": "1", "b": "1", "tcp": "1", "others": "1", "down": "1"},
		envoy.Listener:    {"l": "1"},
		envoy.Route:       {"80": "vhds"},
		envoy.VirtualHost: {"80/a.default": "1", "80/b.default": "1", "80/nobody": "stranger", "80/down.default": "1", "80/a": "-"},
	}, []string{"*", "tcp"}, []string{"*", "80/a", "80/down", "80/nobody"})
	again.expect(envoy.VirtualHost, "80/down nobody")
	again.still()
}

func TestAProxyThatCannotConfirmClustersIsAnsweredAllTheSame(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "warming", version: "1"}, fakeHost{name: "a", version: "1"})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/warming")
	c.receive(envoy.Cluster) // not confirmed: Envoy waits for a secret, or for DNS
	c.expect(envoy.Endpoints, "warming@1")
	c.expect(envoy.VirtualHost, "80/warming.default@1 alias 80/warming")
	c.subscribe(envoy.VirtualHost, "80/a")
	c.expect(envoy.Cluster, "a@1")
	c.expect(envoy.Endpoints, "a@1")
	c.expect(envoy.VirtualHost, "80/a.default@1 alias 80/a")
}

func TestAnAnswerThatIsRejectedStillLetsTheRequestGoOn(t *testing.T) {
	f := onDemand(t, nil, fakeHost{name: "bad", version: "1"}, fakeHost{name: "good", version: "1"})
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/bad", "80/good")
	c.expect(envoy.Cluster, "bad@1", "good@1")
	c.expect(envoy.Endpoints, "bad@1", "good@1")
	answered := make(map[string]bool)
	for !answered["80/bad"] || !answered["80/good"] {
		r := c.receive(envoy.VirtualHost)
		if slices.ContainsFunc(r.Resources, func(x *discovery.Resource) bool { return x.Name == "80/bad.default" }) {
			c.nack(r, "bad")
			continue
		}
		for _, x := range r.Resources {
			for _, alias := range x.Aliases {
				answered[alias] = true
			}
		}
		c.ack(r)
	}
	c.still()
}

// The app asks again (another of Envoy's threads had not heard of the host) for what Envoy has in a version that it took, and not in the newest.
func TestAStrangerWhoseNewestVersionWasRefusedGoesAllTheSame(t *testing.T) {
	f := onDemand(t, nil)
	c := f.connect(f.token(time.Hour))
	c.begin()
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/later")
	c.expect(envoy.VirtualHost, "80/later@stranger")
	f.mesh.strange = "2"
	f.serve()
	c.nack(c.receive(envoy.VirtualHost), "80/later: bad")
	c.expect(envoy.VirtualHost, "-80/~")
	c.subscribe(envoy.VirtualHost, "80/later")
	r := c.receive(envoy.VirtualHost)
	if len(r.Resources) != 1 || r.Resources[0].Resource != nil || !slices.Equal(r.Resources[0].Aliases, []string{"80/later"}) {
		t.Fatalf("told %v", content(r))
	}
	c.ack(r)
	c.still()
	has := map[string]string{"80/later": "stranger"}
	has[r.Resources[0].Name] = r.Resources[0].Version

	// It connects again, when there is such a host.
	f.serve(fakeHost{name: "later", version: "1"})
	again := f.connect(f.token(time.Hour))
	again.returns(map[envoy.Type]map[string]string{
		envoy.Cluster: {"passthrough": "1"}, envoy.Listener: {"l": "1"}, envoy.Route: {"80": "vhds"}, envoy.VirtualHost: has,
	}, []string{"*"}, []string{"*", "80/later"})
	again.expect(envoy.Cluster, "later@1")
	again.expect(envoy.Endpoints, "later@1")
	again.expect(envoy.VirtualHost, "80/later.default@1", "-80/later")
	again.still()
}

func TestAStreamThatNamesTooMuchIsEnded(t *testing.T) {
	f := onDemand(t, nil)
	for name, ask := range map[string]func(*client){
		"an endless name": func(c *client) { c.subscribe(envoy.Endpoints, strings.Repeat("x", maxName+1)) },
		"endless questions": func(c *client) {
			var names []string
			for i := range 1000 {
				names = append(names, fmt.Sprintf("80/%d", i))
			}
			// Nothing is confirmed: eight answers at most are sent, of no more than maxQuestions each.
			for range 10 * maxQuestions / len(names) {
				c.subscribe(envoy.VirtualHost, names...)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.connect(f.token(time.Hour))
			ask(c)
			if err := c.ends(); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.ResourceExhausted {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestDemandsOfWorkloadsWithoutProxiesAreBounded(t *testing.T) {
	d := newDemands(nil)
	var names []string
	for i := range maxDemand {
		names = append(names, fmt.Sprintf("80/h%05d", i))
	}
	for i := range 2 * keepIdle / maxDemand {
		d.learn((&envoy.Demand{Workload: fmt.Sprintf("ns/w%d", i)}).With(envoy.VirtualHost, append(names, "80/one-more")...))
	}
	total := 0
	for _, demand := range d.all() {
		total += demand.Len()
	}
	if total != keepIdle || d.idle != total {
		t.Errorf("%d names are kept, %d counted, want %d", total, d.idle, keepIdle)
	}
	// One that is in use stays.
	a := d.enter("ns/w999")
	d.grow(a, envoy.VirtualHost, []string{"80/a"})
	d.leave(a)
	if d.current(d.enter("ns/w999")).Len() != 1 {
		t.Error("the latest was forgotten first")
	}
}
