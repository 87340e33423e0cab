package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// steadyRequests is how many requests each kind of change gets at least. The figures of
// docs/performance.md are made with WEFT_E2E_STEADY_REQUESTS=20000.
func steadyRequests(t *testing.T) int {
	t.Helper()
	s := os.Getenv("WEFT_E2E_STEADY_REQUESTS")
	if s == "" {
		return 3000
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 100 {
		t.Fatalf("WEFT_E2E_STEADY_REQUESTS=%s: want a number of at least 100", s)
	}
	return n
}

type load struct {
	name  string
	share float64
	args  []string
}

// steadyLoads are what runs through two sidecars during each change, with their share of the
// requests: short requests over kept connections, requests that are under way for a while and
// may not be sent twice, and gRPC.
var steadyLoads = []load{
	{"GET", 0.65, []string{"-c", "8", "-rate", "300", "http://echo/"}},
	{"POST", 0.2, []string{"-c", "6", "-rate", "90", "-X", "POST", "-d", "order", "http://echo/delay/40ms"}},
	{"gRPC", 0.15, []string{"-c", "4", "-rate", "68", "grpc://echo:9000"}},
}

// steady runs the loads and makes the change again and again until they are through. Every
// request must have been answered by the app.
func steady(ns *Namespace, change func(round int), loads ...load) {
	if len(loads) == 0 {
		loads = steadyLoads
	}
	t := ns.T
	t.Helper()
	total := steadyRequests(t.(*testing.T))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(total)*50*time.Millisecond+time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	done := make(chan struct{})
	type outcome struct {
		results Results
		err     error
	}
	outcomes := make([]outcome, len(loads))
	for i, l := range loads {
		n := strconv.Itoa(int(float64(total)*l.share) + 1)
		wg.Go(func() {
			o := &outcomes[i]
			o.results, o.err = ns.Cluster.Call(ctx, ns.Name, "deploy/"+fromClient, append([]string{"-lean", "-n", n}, l.args...)...)
		})
	}
	go func() { wg.Wait(); close(done) }()
	rounds := 0
	for under := true; under; rounds++ {
		change(rounds)
		select {
		case <-done:
			under = false
		default:
		}
	}
	<-done
	for i, l := range loads {
		o := outcomes[i]
		if o.err != nil {
			t.Errorf("%s: %v", l.name, o.err)
			continue
		}
		failed := Results{}
		for _, r := range o.results {
			if r.Error != "" || r.Version == "" || l.name != "gRPC" && r.Status != 200 {
				failed = append(failed, r)
			}
		}
		t.Logf("%s: %d requests during %d changes, %d failed", l.name, len(o.results), rounds, len(failed))
		if len(failed) > 0 {
			first, _ := json.Marshal(failed[:min(len(failed), 3)])
			t.Errorf("%s: %d of %d requests failed: %v, the first ones: %s", l.name, len(failed), len(o.results), failed.Statuses(), first)
		}
	}
}

// reroute sends the requests for echo to a service, and returns when that is so.
func reroute(ns *Namespace, to string) {
	ns.T.Helper()
	ns.Apply(virtualService("echo", "  - route:\n    - destination: {host: "+to+"}\n    headers: {response: {set: {x-routed-to: "+to+"}}}\n"))
	Eventually(ns.T, "requests go to "+to, func() error {
		rs, err := ns.TryCall(fromClient, "http://echo/")
		if err == nil && rs[0].Header("x-routed-to") != to {
			err = fmt.Errorf("headers %v", rs[0].Headers)
		}
		return err
	})
}

// TestNoRequestFailsUnderChange: what operators do all day must not be noticed by anybody's users.
func TestNoRequestFailsUnderChange(t *testing.T) {
	ns := alone(t) // it restarts the control plane
	ns.Deploy(App{Name: "echo", Replicas: 3, PreStop: 1}, client)
	Eventually(t, "the app answers", func() error {
		for _, url := range []string{"http://echo/", "grpc://echo:9000"} {
			if rs, err := ns.TryCall(fromClient, url); err != nil || rs[0].Version != "v1" {
				return fmt.Errorf("%v %v", rs, err)
			}
		}
		return nil
	})
	in := func(t *testing.T) *Namespace { return &Namespace{T: t, Cluster: ns.Cluster, Name: ns.Name} }

	t.Run("rolling restart", func(t *testing.T) {
		ns := in(t)
		steady(ns, func(int) {
			ns.Kubectl("rollout", "restart", "deploy/echo-v1")
			ns.WaitRollout("echo-v1")
		})
	})
	t.Run("scaling", func(t *testing.T) {
		ns := in(t)
		steady(ns, func(round int) {
			ns.Kubectl("scale", "deploy/echo-v1", "--replicas="+strconv.Itoa([]int{1, 4}[round%2]))
			ns.WaitRollout("echo-v1")
		})
		ns.Kubectl("scale", "deploy/echo-v1", "--replicas=3")
		ns.WaitRollout("echo-v1")
	})
	t.Run("restart of an app that closes its port at once", func(t *testing.T) {
		ns := in(t)
		ns.Deploy(App{Name: "hasty", Replicas: 3})
		// An app that closes an idle HTTP/1.1 connection in the moment in which a request is sent on it may or may not have seen the
		// request: nobody repeats a POST then. What is safe to repeat, and gRPC, whose servers say which requests they have
		// not taken, is not lost.
		steady(ns, func(int) {
			ns.Kubectl("rollout", "restart", "deploy/hasty-v1")
			ns.WaitRollout("hasty-v1")
		},
			load{"GET", 0.8, []string{"-c", "8", "-rate", "300", "http://hasty/"}},
			load{"gRPC", 0.2, []string{"-c", "4", "-rate", "75", "grpc://hasty:9000"}})
	})
	t.Run("subsets come and go", func(t *testing.T) {
		ns := in(t)
		to := virtualService("echo", "  - route:\n    - destination: {host: echo, subset: v1}\n")
		steady(ns, func(int) {
			ns.Apply(subsets("echo", []string{"v1"}) + "---\n" + to)
			// In this order: a route to a subset that nobody defines is an error of who wrote it.
			ns.Kubectl("delete", "virtualservice", "echo")
			ns.Kubectl("delete", "destinationrule", "echo")
		})
	})
	t.Run("weights move between subsets", func(t *testing.T) {
		ns := in(t)
		ns.Deploy(App{Name: "echo", Version: "v2", PreStop: 1})
		ns.Apply(subsets("echo", []string{"v1", "v2"}))
		steady(ns, func(round int) {
			v1 := []int{100, 90, 50, 0, 50, 90}[round%6]
			ns.Apply(virtualService("echo", fmt.Sprintf("  - route:\n    - {destination: {host: echo, subset: v1}, weight: %d}\n    - {destination: {host: echo, subset: v2}, weight: %d}\n", v1, 100-v1)))
		})
		reroute(ns, "echo") // nobody is sent to a version any more when it goes
		ns.Kubectl("delete", "virtualservice", "echo")
		ns.Kubectl("delete", "destinationrule", "echo")
		ns.Kubectl("delete", "deployment", "echo-v2")
	})
	t.Run("routes are rewritten", func(t *testing.T) {
		ns := in(t)
		rules := []string{
			"  - route:\n    - destination: {host: echo}\n",
			"  - match: [{method: {exact: POST}}]\n    timeout: 10s\n    route:\n    - destination: {host: echo}\n  - route:\n    - destination: {host: echo}\n",
			"  - match: [{headers: {x-canary: {exact: \"yes\"}}}]\n    route:\n    - destination: {host: nowhere}\n  - route:\n    - destination: {host: echo}\n      weight: 100\n    retries: {attempts: 3}\n",
		}
		steady(ns, func(round int) { ns.Apply(virtualService("echo", rules[round%len(rules)])) })
		ns.Kubectl("delete", "virtualservice", "echo")
	})
	t.Run("policies change", func(t *testing.T) {
		ns := in(t)
		balancers := []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"}
		modes := []string{"STRICT", "PERMISSIVE"}
		steady(ns, func(round int) {
			ns.Apply(subsets("echo", nil, fmt.Sprintf("  trafficPolicy: {loadBalancer: {simple: %s}}\n", balancers[round%len(balancers)])))
			ns.Apply(strings.Replace(strict, "STRICT", modes[round%len(modes)], 1))
		})
		ns.Kubectl("delete", "destinationrule", "echo")
		ns.Kubectl("delete", "peerauthentication", "--all")
	})
	t.Run("the mesh's mTLS mode changes", func(t *testing.T) {
		ns := in(t)
		steady(ns, func(round int) {
			if mode := []string{"STRICT", "PERMISSIVE", ""}[round%3]; mode != "" {
				system(ns).Apply(strings.Replace(strict, "STRICT", mode, 1))
			} else {
				system(ns).Kubectl("delete", "peerauthentication", "default")
			}
		})
		system(ns).Kubectl("delete", "peerauthentication", "--all")
	})
	t.Run("the mesh's configuration changes", func(t *testing.T) {
		ns := in(t)
		before := ns.meshConfig()
		t.Cleanup(func() { ns.setMeshConfig(before) })
		additions := []string{"accessLogFile: /dev/stdout\n", "connectTimeout: 3s\n", ""}
		steady(ns, func(round int) { ns.setMeshConfig(before + additions[round%len(additions)]) })
	})
	t.Run("a port gets another name", func(t *testing.T) {
		ns := in(t)
		service := App{Name: "echo"}.service()
		names := []string{"http-web", "http"}
		steady(ns, func(round int) {
			ns.Apply(strings.Replace(service, "name: http,", "name: "+names[round%len(names)]+",", 1))
		})
		ns.Apply(service)
	})
	t.Run("another service is deleted and made again", func(t *testing.T) {
		ns := in(t)
		other := App{Name: "other"}
		ns.Deploy(other)
		steady(ns, func(int) {
			ns.Kubectl("delete", "service", "other")
			ns.Apply(other.YAML())
			answered := func() error {
				rs, err := ns.TryCall(fromClient, "http://other/")
				if err != nil || rs[0].Status != 200 {
					return fmt.Errorf("%v %v", rs, err)
				}
				return nil
			}
			Eventually(t, "it answers again", answered)
			if got := ns.Call(fromClient, "-n", "50", "-c", "5", "http://other/").Statuses(); got["200"] != 50 {
				t.Errorf("after its first answer: %v", got)
			}
		})
	})
	t.Run("the service behind the routes is replaced", func(t *testing.T) {
		ns := in(t)
		steady(ns, func(round int) {
			next, last := []string{"blue", "green"}[round%2], []string{"green", "blue"}[round%2]
			ns.Apply(strings.Replace(App{Name: next}.service(), "selector: {app: "+next+"}", "selector: {app: echo}", 1))
			reroute(ns, next)
			ns.Kubectl("delete", "service", last, "--ignore-not-found")
		})
		ns.Kubectl("delete", "virtualservice", "echo")
		ns.Kubectl("delete", "service", "blue", "green", "--ignore-not-found")
	})
	t.Run("a service entry comes and goes", func(t *testing.T) {
		ns, outside := in(t), someoneOutside(t)
		host := "api." + ns.Name + ".example.com"
		entry := fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api}\nspec:\n  hosts: [%s]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n"+
			"  location: MESH_EXTERNAL\n  resolution: STATIC\n  endpoints: [{address: %s, ports: {http: 8080}}]\n", host, outside.pods("app=stranger")[0].Status.PodIP)
		// With the entry and without it (passed through) its host is answered.
		through := load{"GET from outside", 0.1, append([]string{"-c", "3", "-rate", "45"}, ns.to(outside, "http://"+host+"/")...)}
		steady(ns, func(int) {
			ns.Apply(entry)
			ns.Kubectl("delete", "serviceentry", "api")
		}, append(slices.Clone(steadyLoads), through)...)
	})
	t.Run("other clients start", func(t *testing.T) {
		ns := in(t)
		other := App{Name: "caller", Hold: true}
		ns.Deploy(other)
		steady(ns, func(int) {
			ns.Kubectl("rollout", "restart", "deploy/caller-v1")
			ns.WaitRollout("caller-v1")
			// Of a pod that is ready, the first request is answered like any other.
			if got := ns.Call("caller-v1", "-n", "50", "-c", "5", "http://echo/").Statuses(); got["200"] != 50 {
				t.Errorf("the first requests of a new pod: %v", got)
			}
		})
	})
	t.Run("the control plane is restarted", func(t *testing.T) {
		ns := in(t)
		system := system(ns)
		steady(ns, func(int) {
			system.Kubectl("rollout", "restart", "deploy/istiod")
			system.WaitRollout("istiod")
		})
	})
}
