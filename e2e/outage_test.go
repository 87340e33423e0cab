package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestControlPlaneOutage: weftd is killed, stays away for 30 s and comes back, under load.
func TestControlPlaneOutage(t *testing.T) {
	onSandbox(t)
	ns, plain := meshed(t), outside(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2"}, client)
	plain.Deploy(client)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 50, 50)))
	Eventually(t, "both versions answer", func() error {
		if got := ns.Call(fromClient, "-n", "40", "http://echo/").Versions(); len(got) != 2 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})

	load := make(chan error, 1)
	var results Results
	go func() {
		var err error
		results, err = ns.TryCall(fromClient, "-for", "45s", "-rate", "50", "-c", "4", "http://echo/")
		load <- err
	}()
	system := &Namespace{T: t, Cluster: ns.Cluster, Name: "istio-system"}
	istiod := system.pods("app=istiod")[0]
	pids, err := sandboxNode.Processes(&istiod, "weftd")
	if err != nil || len(pids) == 0 {
		t.Fatalf("weftd's processes: %v %v", pids, err)
	}
	system.Kubectl("scale", "deploy/istiod", "--replicas=0")
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
	<-time.After(30 * time.Second) // the outage itself
	system.Kubectl("scale", "deploy/istiod", "--replicas=1")
	system.WaitRollout("istiod")
	if err := <-load; err != nil {
		t.Fatal(err)
	}
	if ok := results.Statuses()["200"]; ok != len(results) || ok < 1500 {
		t.Errorf("%d requests during the outage: %v", len(results), results.Statuses())
	}

	// Every sidecar is back, and got nothing that it still had: what changed is only the
	// address of the new istiod, in the endpoints of its four ports.
	const sidecars, ports = 3, 4
	Eventually(t, "the sidecars are connected again", func() error {
		if n := counter(plain.weftdMetrics(), `pilot_xds`); n != sidecars {
			return fmt.Errorf("%d are, want %d", n, sidecars)
		}
		return nil
	})
	metrics := plain.weftdMetrics()
	for kind, want := range map[string]int{"cds": 0, "eds": sidecars * ports, "lds": 0, "rds": 0} {
		if n := counter(metrics, `weft_xds_resources_sent_total{type="`+kind+`"}`); n > want {
			t.Errorf("%d %s resources were resent after the restart, want %d", n, kind, want)
		}
	}
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 0, 100)))
	ns.onlyVersion("v2", 20, "http://echo/")
}

// weftdMetrics reads port 15014 as Prometheus does.
func (ns *Namespace) weftdMetrics() string {
	ns.T.Helper()
	return ns.Call(fromClient, "http://istiod.istio-system:15014/metrics")[0].Body
}

// counter returns one sample of a metrics page; 0 when it is not there.
func counter(page, sample string) int {
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + `(?:\{[^}]*\})? (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0
	}
	return int(v)
}
