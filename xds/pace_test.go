package xds

import (
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

func TestAThrottledServerTellsEverybodyAlsoWhenSomeDoNotRead(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		if err := c.FromEnvironment(func(string) string { return "1" }); err != nil {
			t.Fatal(err)
		}
	}, set("s", 1, service("a", "1")...))
	// The only place is taken, and stays so.
	f.pushes <- struct{}{}
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	f.push(set("s", 2, slices.Concat(service("a", "1"), service("b", "1"))...))
	c.expect(envoy.Cluster, "b@1")
	c.expect(envoy.Endpoints, "b@1")
	for _, bad := range []string{"many", "-1"} {
		if err := new(Config).FromEnvironment(func(string) string { return bad }); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestACrowdThatComesDoesNotHoldUpWhoStays(t *testing.T) {
	state := func(v string) *envoy.Set {
		return set("s", 1, append(service("a", v), res(envoy.Listener, "l", "1"), res(envoy.Route, "80", "1"))...)
	}
	f := newFixture(t, nil, state("1"))
	stays := f.connect(f.token(time.Hour))
	stays.start(f)
	eventually(t, func() bool { return f.newcomers() == 0 })
	// A crowd has all places, and comes no further.
	for range cap(f.computing) {
		f.computing <- struct{}{}
	}
	comes := f.connect(f.token(time.Hour))
	comes.subscribe(envoy.Cluster)
	f.push(state("2"))
	stays.expect(envoy.Cluster, "a@2")
	stays.expect(envoy.Endpoints, "a@2")
	stays.quiet()
	for range cap(f.computing) {
		<-f.computing
	}
	comes.expect(envoy.Cluster, "a@2")
}

// newcomers counts the streams that have not got yet what they need.
func (f *fixture) newcomers() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sessions {
		if s.newcomer.Load() {
			n++
		}
	}
	return n
}
