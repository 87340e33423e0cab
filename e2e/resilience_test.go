package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

const toEcho = "    route:\n    - destination: {host: echo}\n"

func TestS16AbortsAShareOfRequests(t *testing.T) {
	ns := versions(t)
	abort := func(percent int) string {
		return virtualService("echo", fmt.Sprintf(`  - match:
    - headers: {x-canary: {exact: "true"}}
    fault: {abort: {httpStatus: 555, percentage: {value: %d}}}
%s  -%s`, percent, toEcho, toEcho[3:]))
	}
	canary := []string{"-n", "100", "-H", "x-canary: true", "http://echo/"}

	ns.Apply(abort(100))
	Eventually(t, "all aborted", func() error {
		rs := ns.Call(fromClient, canary...)
		if got := rs.Statuses(); got["555"] != 100 {
			return fmt.Errorf("%v", got)
		}
		if rs[0].Body != "fault filter abort" {
			return fmt.Errorf("body %q", rs[0].Body)
		}
		return nil
	})
	if got := ns.Call(fromClient, "-n", "20", "http://echo/").Statuses(); got["200"] != 20 {
		t.Errorf("requests without the header: %v, want 200", got)
	}
	ns.Apply(abort(20))
	Eventually(t, "some pass again", func() error {
		if got := ns.Call(fromClient, canary...).Statuses(); got["200"] == 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	got := ns.Call(fromClient, append([]string{"-n", "300"}, canary[2:]...)...).Statuses()
	between(t, "aborted of 300 at 20 %", got["555"], 32, 88)
}

func TestS17DelaysAShareOfRequests(t *testing.T) {
	ns := versions(t)
	ns.Apply(virtualService("echo", "  - fault: {delay: {fixedDelay: 5s, percentage: {value: 20}}}\n"+toEcho))
	Eventually(t, "some are delayed", func() error {
		slow, fast := 0, 0
		for _, r := range ns.Call(fromClient, "-n", "60", "-c", "60", "http://echo/") {
			switch {
			case r.Status != 200:
				return fmt.Errorf("%+v", r)
			case r.Millis >= 5000 && r.Millis < 6500:
				slow++
			case r.Millis < 2000:
				fast++
			}
		}
		if slow+fast != 60 || slow < 2 || slow > 26 {
			return fmt.Errorf("%d delayed, %d not, of 60 at 20 %%", slow, fast)
		}
		return nil
	})
}

func TestS19LateAnswersBecome504(t *testing.T) {
	ns := versions(t)
	ns.Apply(virtualService("echo", "  - timeout: 1s\n"+toEcho))
	Eventually(t, "timeout", func() error {
		r := ns.Call(fromClient, "http://echo/delay/5s")[0]
		if r.Status != 504 || r.Body != "upstream request timeout" {
			return fmt.Errorf("status %d after %.0f ms: %q", r.Status, r.Millis, r.Body)
		}
		if r.Millis < 950 || r.Millis > 2500 {
			return fmt.Errorf("after %.0f ms, want about 1000", r.Millis)
		}
		return nil
	})
	if r := ns.Call(fromClient, "http://echo/delay/100ms")[0]; r.Status != 200 {
		t.Errorf("an answer in time: %d, want 200", r.Status)
	}
}

func TestS21RetriesHideFailures(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(App{Name: "echo", Env: map[string]string{"FAIL_PERCENT": "50", "FAIL_STATUS": "555"}}, client)
	before := ns.Call(fromClient, "-n", "100", "http://echo/").Statuses()
	between(t, "failures without retries, of 100 at 50 %", before["555"], 30, 70)
	ns.Apply(virtualService("echo", "  - retries: {attempts: 5, perTryTimeout: 2s, retryOn: 5xx}\n"+toEcho))
	Eventually(t, "almost no failure is left", func() error {
		// 0.5^6 of requests fail six times in a row: 3 of 200.
		if got := ns.Call(fromClient, "-n", "200", "-c", "8", "http://echo/").Statuses(); got["555"] > 12 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

func TestS22DefaultRetryPolicyComesFromMeshConfig(t *testing.T) {
	ns := alone(t)
	ns.Deploy(App{Name: "echo", Env: map[string]string{"FAIL_PERCENT": "75", "FAIL_STATUS": "503"}}, client)
	// By default only what was not answered is tried again: an answered 503 stays.
	got := ns.Call(fromClient, "-n", "200", "http://echo/").Statuses()
	between(t, "503 of 200 at 75 % with the default policy", got["503"], 126, 174)

	ns.withMeshConfig("defaultHttpRetryPolicy: {attempts: 0}")
	got = ns.Call(fromClient, "-n", "200", "http://echo/").Statuses()
	between(t, "503 of 200 at 75 % without retries", got["503"], 126, 174)

	ns.Apply(virtualService("echo", "  - retries: {attempts: 2, retryOn: 5xx}\n"+toEcho))
	Eventually(t, "an explicit policy counts", func() error {
		// 1 - 0.75^3 = 58 % succeed within three tries.
		if got := ns.Call(fromClient, "-n", "200", "-c", "8", "http://echo/").Statuses(); got["200"] < 88 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	ns.Apply(virtualService("echo", "  - retries: {attempts: 15, retryOn: 5xx}\n"+toEcho))
	Eventually(t, "enough tries", func() error {
		if got := ns.Call(fromClient, "-n", "100", "-c", "8", "http://echo/").Statuses(); got["200"] < 95 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// meshConfig is the mesh's configuration, as YAML.
func (ns *Namespace) meshConfig() string {
	ns.T.Helper()
	return strings.TrimRight(ns.run("", "get", "configmap", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}"), "\n") + "\n"
}

// setMeshConfig replaces the mesh's configuration.
func (ns *Namespace) setMeshConfig(mesh string) {
	ns.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	yaml := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n"
	for line := range strings.Lines(mesh) {
		yaml += "    " + strings.TrimRight(line, "\n") + "\n"
	}
	if _, err := ns.Cluster.Run(ctx, yaml, "apply", "-f", "-"); err != nil {
		ns.T.Errorf("mesh configuration: %v", err)
	}
}

// withMeshConfig adds to the mesh's configuration until the end of the test.
func (ns *Namespace) withMeshConfig(add string) {
	ns.T.Helper()
	before := ns.meshConfig()
	ns.T.Cleanup(func() { ns.setMeshConfig(before) })
	ns.setMeshConfig(before + add + "\n")
}

func TestS29ConnectionPoolOverflows(t *testing.T) {
	ns := meshed(t)
	// As with Istio, a sidecar keeps the counters of a cluster only when asked to.
	cluster := "cluster.outbound|80||" + ns.host("echo")
	counted := client
	counted.Annotate = map[string]string{"sidecar.istio.io/statsInclusionPrefixes": cluster}
	ns.Deploy(App{Name: "echo", Env: map[string]string{"DELAY": "30ms"}}, counted)
	pool := func(http string) string {
		return subsets("echo", nil, `  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, maxRetries: 1, `+http+`}
`)
	}
	ns.Apply(pool("http2MaxRequests: 1, maxRequestsPerConnection: 1"))
	Eventually(t, "two clients do not fit", func() error {
		rs := ns.Call(fromClient, "-n", "60", "-c", "2", "http://echo/")
		got := rs.Statuses()
		if got["503"] < 6 || got["200"] < 6 || got["200"]+got["503"] != 60 {
			return fmt.Errorf("%v", got)
		}
		for _, r := range rs {
			if r.Status == 503 && r.Header("x-envoy-overloaded") != "true" {
				return fmt.Errorf("a 503 without x-envoy-overloaded: %+v", r)
			}
		}
		return nil
	})
	if n := ns.stat(cluster+".upstream_cx_overflow") + ns.stat(cluster+".upstream_rq_pending_overflow"); n == 0 {
		t.Errorf("no overflow is counted in %s", cluster)
	}
	// One request runs and one waits. The connection is kept: while a new one is opened, a third could come to wait.
	ns.Apply(pool("http2MaxRequests: 2"))
	Eventually(t, "two clients fit", func() error {
		if got := ns.Call(fromClient, "-n", "60", "-c", "2", "http://echo/").Statuses(); got["200"] != 60 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// stat reads one counter of the client's sidecar from its admin port, as a user in the pod can.
func (ns *Namespace) stat(name string) int {
	ns.T.Helper()
	for line := range strings.Lines(ns.Call(fromClient, "http://127.0.0.1:15000/stats")[0].Body) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), ": "); strings.HasSuffix(k, name) {
			n, err := strconv.Atoi(v)
			if err != nil {
				ns.T.Fatalf("%s: %v", line, err)
			}
			return n
		}
	}
	ns.T.Errorf("the sidecar has no counter %s", name)
	return 0
}

func TestS30OutlierDetectionEjectsAFailingPod(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2", Env: map[string]string{"FAIL_PERCENT": "100", "FAIL_STATUS": "500"}}, client)
	before := ns.Call(fromClient, "-n", "100", "http://echo/").Statuses()
	between(t, "failures before, of 100", before["500"], 25, 75)
	outlier := "  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}\n"
	ns.Apply(subsets("echo", nil, outlier))
	Eventually(t, "the failing pod is ejected", func() error {
		if got := ns.Call(fromClient, "-n", "100", "http://echo/").Statuses(); got["200"] < 96 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	ns.Apply(virtualService("echo", "  - retries: {attempts: 2, retryOn: 5xx}\n"+toEcho))
	Eventually(t, "retries hide the rest", func() error {
		if got := ns.Call(fromClient, "-n", "200", "http://echo/").Statuses(); got["200"] != 200 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

func TestS66RelabelledPodLeavesTheEndpoints(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2", Env: map[string]string{"FAIL_PERCENT": "100", "FAIL_STATUS": "500"}}, client)
	if got := ns.Call(fromClient, "-n", "60", "http://echo/").Statuses(); got["500"] == 0 {
		t.Fatalf("the bad pod gets no traffic: %v", got)
	}
	bad := ns.pods("app=echo,version=v2")[0].Name
	ns.Kubectl("label", "pod", bad, "app=quarantine", "--overwrite")
	start := time.Now()
	Eventually(t, "errors stop", func() error {
		if got := ns.Call(fromClient, "-n", "40", "http://echo/").By(func(r Result) string { return r.Pod }); got[bad] > 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	t.Logf("the relabelled pod got no traffic after %v", time.Since(start).Round(time.Millisecond))
	// The Deployment replaces it; the quarantined pod goes on running and can be looked at.
	if out := ns.Kubectl("get", "pod", bad); !strings.Contains(out, "Running") {
		t.Errorf("the relabelled pod is not running:\n%s", out)
	}
}
