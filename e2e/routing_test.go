package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/mesh"
)

// twoVersions are namespaces with v1 and v2 of echo and a client. As many are made as scenarios run beside each other.
var twoVersions struct {
	sync.Mutex
	made int
	free map[mesh.Discovery][]*Namespace
}

// versions is meshed with v1 and v2 of echo and a client in it. Scenarios use one namespace after another,
// so a scenario gets it without rules and its rules go with it.
func versions(t *testing.T) *Namespace {
	t.Helper()
	t.Parallel()
	cluster := onCluster(t)
	way := discoveryOf(t)
	twoVersions.Lock()
	var ns *Namespace
	if free := twoVersions.free[way]; len(free) > 0 {
		last := len(free) - 1
		ns, twoVersions.free[way] = &Namespace{T: t, Cluster: cluster, Name: free[last].Name}, free[:last]
	}
	twoVersions.made++
	name := fmt.Sprintf("versions-%d", twoVersions.made)
	twoVersions.Unlock()
	if ns == nil {
		ns = namespaceUntilEnd(t, cluster, name, meshLabels(t)...)
		ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2"}, client)
	}
	t.Cleanup(func() {
		if t.Failed() {
			ns.dump()
			return // nobody else gets it
		}
		if _, err := ns.TryKubectl("delete", "virtualservices,destinationrules,peerauthentications", "--all"); err != nil {
			t.Errorf("cleaning up: %v", err)
			return
		}
		twoVersions.Lock()
		defer twoVersions.Unlock()
		if twoVersions.free == nil {
			twoVersions.free = map[mesh.Discovery][]*Namespace{}
		}
		twoVersions.free[way] = append(twoVersions.free[way], ns)
	})
	Eventually(t, "without rules, both versions answer at once", func() error {
		rs, err := ns.TryCall(fromClient, "-n", "20", "-c", "20", "http://echo/")
		if err != nil {
			return err
		}
		if got := rs.Versions(); rs.Statuses()["200"] != 20 || len(got) != 2 {
			return fmt.Errorf("%v by %v", rs.Statuses(), got)
		}
		return nil
	})
	return ns
}

// onlyVersion waits until n requests with these arguments are all answered by one version.
func (ns *Namespace) onlyVersion(version string, n int, args ...string) {
	ns.T.Helper()
	Eventually(ns.T, "only "+version, func() error {
		rs, err := ns.TryCall(fromClient, append([]string{"-n", fmt.Sprint(n)}, args...)...)
		if err != nil {
			return err
		}
		if got := rs.Versions(); got[version] != n {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
}

const weighted = `  - route:
    - destination: {host: echo, subset: v1}
      weight: %d
    - destination: {host: echo, subset: v2}
      weight: %d
`

func TestS06WithoutRulesBothVersionsAnswer(t *testing.T) {
	ns := versions(t)
	got := ns.Call(fromClient, "-n", "60", "http://echo/").Versions()
	if got["v1"] < 10 || got["v2"] < 10 || got["v1"]+got["v2"] != 60 {
		t.Errorf("60 requests were answered by %v, want both versions", got)
	}
}

func TestS07WeightedSubsets(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 100, 0)))
	ns.onlyVersion("v1", 20, "http://echo/")
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 90, 10)))
	Eventually(t, "v2 gets a share", func() error {
		if got := ns.Call(fromClient, "-n", "50", "http://echo/").Versions(); got["v2"] == 0 {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
	got := ns.Call(fromClient, "-n", "200", "http://echo/").Versions()
	between(t, "v2 of 200 at 10 %", got["v2"], 4, 37)
	between(t, "v1 and v2", got["v1"]+got["v2"], 200, 200)
}

func TestS09BlueGreen(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	for _, version := range []string{"v1", "v2"} {
		ns.Apply(virtualService("echo", "  - route:\n    - destination: {host: echo, subset: "+version+"}\n"))
		ns.onlyVersion(version, 40, "http://echo/")
	}
}

func TestS10HeaderChoosesVersion(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", `  - match:
    - headers: {x-istio-cohort: {exact: internal}}
    - headers: {x-canary: {exact: "true"}}
    route:
    - destination: {host: echo, subset: v2}
  - route:
    - destination: {host: echo, subset: v1}
`))
	ns.onlyVersion("v2", 20, "-H", "x-istio-cohort: internal", "http://echo/")
	ns.onlyVersion("v2", 20, "-H", "x-canary: true", "http://echo/")
	ns.onlyVersion("v1", 20, "http://echo/")
	ns.onlyVersion("v1", 20, "-H", "x-istio-cohort: external", "http://echo/")
}

func TestS12PrefixIsRewritten(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", `  - match:
    - uri: {prefix: /canary}
    rewrite: {uri: /}
    route:
    - destination: {host: echo, subset: v2}
  - route:
    - destination: {host: echo, subset: v1}
`))
	ns.onlyVersion("v2", 20, "http://echo/canary")
	ns.onlyVersion("v1", 20, "http://echo/other")
	if got := ns.Call(fromClient, "http://echo/canary")[0].Seen().Path; got != "/" {
		t.Errorf("the app saw path %q, want /", got)
	}
}

func TestS14RedirectInsideTheMesh(t *testing.T) {
	ns := versions(t)
	ns.Apply(virtualService("echo", `  - match:
    - uri: {prefix: /frontend}
    redirect: {uri: /, authority: frontend}
  - route:
    - destination: {host: echo}
`))
	Eventually(t, "redirect", func() error {
		r := ns.Call(fromClient, "http://echo/frontend")[0]
		if r.Status != 301 || r.Header("location") != "http://frontend/" || r.Header("server") != "envoy" {
			return fmt.Errorf("status %d, location %q, server %q", r.Status, r.Header("location"), r.Header("server"))
		}
		return nil
	})
	if r := ns.Call(fromClient, "http://echo/")[0]; r.Status != 200 {
		t.Errorf("other paths: %d, want 200", r.Status)
	}
}

func TestS15HeadersAreSetAddedRemoved(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", `  - match:
    - uri: {prefix: /route}
    headers:
      request: {set: {User-Agent: wget}, remove: [x-drop]}
      response: {add: {x-canary: "true"}, remove: [x-internal-header]}
    route:
    - destination: {host: echo, subset: v2}
  - route:
    - destination: {host: echo, subset: v1}
      headers:
        response: {add: {X-Envoy: test}}
`))
	ns.onlyVersion("v2", 5, "http://echo/route")
	r := ns.Call(fromClient, "-H", "x-drop: me", "-H", "x-keep: me", "http://echo/route")[0]
	seen := r.Seen().Headers
	if !slices.Equal(seen["User-Agent"], []string{"wget"}) || seen["X-Drop"] != nil || !slices.Equal(seen["X-Keep"], []string{"me"}) {
		t.Errorf("the app saw %v", seen)
	}
	if r.Header("x-canary") != "true" || r.Header("x-internal-header") != "" || r.Header("x-app-version") != "v2" {
		t.Errorf("the client saw %v", r.Headers)
	}
	r = ns.Call(fromClient, "http://echo/")[0]
	if r.Header("X-Envoy") != "test" || r.Header("x-canary") != "" || r.Header("x-internal-header") == "" {
		t.Errorf("on the other route the client saw %v", r.Headers)
	}
}

func TestS26MirroredRequestsReachTheCanary(t *testing.T) {
	ns := versions(t)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	mirror := func(percentage string) string {
		return virtualService("echo", `  - route:
    - destination: {host: echo, subset: v1}
    mirror: {host: echo, subset: v2}
`+percentage)
	}
	// mirrored counts the requests with a path that v2 logged.
	mirrored := func(path string) int {
		return strings.Count(ns.Kubectl("logs", "deploy/echo-v2", "-c", "app"), " "+path+" ")
	}

	ns.Apply(mirror(""))
	Eventually(t, "a copy arrives", func() error {
		ns.Call(fromClient, "http://echo/warm-up")
		if mirrored("/warm-up") == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	ns.onlyVersion("v1", 20, "http://echo/")
	if got := ns.Call(fromClient, "-n", "50", "http://echo/all").Versions(); got["v1"] != 50 {
		t.Errorf("the client was answered by %v, want v1 only", got)
	}
	Eventually(t, "every request is mirrored", func() error {
		if n := mirrored("/all"); n != 50 {
			return fmt.Errorf("%d of 50", n)
		}
		return nil
	})

	ns.Apply(mirror("    mirrorPercentage: {value: 50}\n"))
	round := 0
	Eventually(t, "about half of the requests are mirrored", func() error {
		round++
		path := fmt.Sprintf("/half-%d", round)
		ns.Call(fromClient, "-n", "200", "http://echo"+path)
		if n := mirrored(path); n < 70 || n > 130 {
			return fmt.Errorf("%d of 200", n)
		}
		return nil
	})
}

func TestS27ConsistentHashKeepsAUserOnOnePod(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(App{Name: "echo", Replicas: 3}, client)
	ns.Apply(subsets("echo", nil, "  trafficPolicy:\n    loadBalancer: {consistentHash: {httpHeaderName: x-user}}\n"))
	pods := func(args ...string) map[string]int {
		return ns.Call(fromClient, append(args, "http://echo/")...).By(func(r Result) string { return r.Pod })
	}
	Eventually(t, "one user, one pod", func() error {
		if got := pods("-n", "30", "-H", "x-user: anna"); len(got) != 1 || got[""] > 0 {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
	seen := map[string]bool{}
	for i := range 12 {
		got := pods("-n", "5", "-H", fmt.Sprintf("x-user: user-%d", i))
		if len(got) != 1 {
			t.Errorf("user-%d was answered by %v, want one pod", i, got)
		}
		for pod := range got {
			seen[pod] = true
		}
	}
	if len(seen) < 2 {
		t.Errorf("12 users were all answered by %v", seen)
	}
	if got := pods("-n", "30"); len(got) < 2 {
		t.Errorf("without the header: %v, want several pods", got)
	}
}
