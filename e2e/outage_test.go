package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
)

// system is the mesh's own namespace, for a test.
func system(ns *Namespace) *Namespace {
	return &Namespace{T: ns.T, Cluster: ns.Cluster, Name: "istio-system"}
}

// load makes requests from the client until the returned function is called, which waits for the end and gives what each saw.
func (ns *Namespace) load(period time.Duration, url string) func() Results {
	done := make(chan error, 1)
	var results Results
	go func() {
		var err error
		results, err = ns.TryCall(fromClient, "-lean", "-for", period.String(), "-rate", "50", "-c", "4", url)
		done <- err
	}()
	return func() Results {
		ns.T.Helper()
		if err := <-done; err != nil {
			ns.T.Fatal(err)
		}
		return results
	}
}

// noneFailed fails unless there were enough requests and all were answered 200.
func noneFailed(t *testing.T, what string, results Results, atLeast int) {
	t.Helper()
	if got := results.Failures(); len(got) > 0 || len(results) < atLeast {
		t.Errorf("%s: of %d requests (want at least %d) failed: %v", what, len(results), atLeast, got)
	}
	t.Logf("%s: %d requests, %v", what, len(results), results.Statuses())
}

// kill ends a pod's program at once, as a crash or a lost node does: without SIGTERM where its processes are visible.
func kill(ns *Namespace, pod *corev1.Pod, program string) {
	ns.T.Helper()
	err := ns.Cluster.Kill(pod, program, syscall.SIGKILL)
	if errors.Is(err, ErrElsewhere) {
		_, err = ns.Cluster.Run(ns.T.Context(), "", "delete", "pod", "-n", pod.Namespace, pod.Name, "--force", "--grace-period=0")
		if err != nil && strings.Contains(err.Error(), "NotFound") {
			return // it ended by itself meanwhile
		}
	}
	if err != nil {
		ns.T.Fatal(err)
	}
}

// TestControlPlaneOutage: weftd is killed, stays away for 30 s and comes back, under load.
func TestControlPlaneOutage(t *testing.T) {
	ns, plain := alone(t), outside(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2"}, client)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 50, 50)))
	Eventually(t, "both versions answer", func() error {
		if got := ns.Call(fromClient, "-n", "40", "http://echo/").Versions(); len(got) != 2 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})

	asking := onDemandClient(ns)
	// What ends while nobody is told of it is news afterwards.
	Eventually(t, "namespaces of earlier scenarios are gone", func() error {
		if out := ns.run("", "get", "namespaces"); strings.Contains(out, "Terminating") {
			return errors.New(out)
		}
		return nil
	})

	system := system(ns)
	replicas := len(system.pods("app=istiod"))
	sidecars := everyProxyConnected(plain)
	results := ns.load(45*time.Second, "http://echo/")
	down := time.Now()
	istiods := system.pods("app=istiod")
	t.Cleanup(func() { system.Kubectl("scale", "deploy/istiod", "--replicas="+strconv.Itoa(max(replicas, 1))) }) // whatever happens
	system.Kubectl("scale", "deploy/istiod", "--replicas=0")
	for _, p := range istiods {
		kill(ns, &p, "weftd")
	}
	Eventually(t, "istiod is gone", func() error {
		left, err := ns.Cluster.Pods(t.Context(), system.Name, "app=istiod")
		if err != nil {
			return err
		}
		for _, p := range left { // kubelet may have started it again before it heard that the pod is to end; it then serves until it is drained
			if err := ns.Cluster.Kill(&p, "weftd", syscall.SIGKILL); err != nil && !errors.Is(err, ErrElsewhere) {
				return err
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%d pods are left", len(left))
		}
		return nil
	})
	refusedMeanwhile(t, ns, plain)
	asking.meanwhile()
	<-time.After(time.Until(down.Add(30 * time.Second))) // the outage itself
	system.Kubectl("scale", "deploy/istiod", "--replicas="+strconv.Itoa(max(replicas, 1)))
	system.WaitRollout("istiod")
	noneFailed(t, "30 s without a control plane", results(), 1000)

	// Every sidecar is back, and got nothing that it still had: what changed is only the
	// addresses of istiod, in the endpoints of its four ports: old ones gone, new ones there. And what was asked for meanwhile is there.
	const ports, changes, asked = 4, 2, 2
	everyProxyConnected(plain)
	metrics := plain.weftdMetrics()
	for kind, want := range map[string]int{"cds": asked, "eds": sidecars*ports*changes + asked, "lds": 0, "rds": 0} {
		if n := counter(metrics, `weft_xds_resources_sent_total{type="`+kind+`"}`); n > want {
			t.Errorf("%d %s resources were resent after the restart, want %d", n, kind, want)
		}
	}
	asking.afterwards()
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 0, 100)))
	ns.onlyVersion("v2", 20, "http://echo/")
	ns.Deploy(late)
	if got := ns.readyColumn("late"); got != "2/2" {
		t.Errorf("a pod made after the outage: READY is %s, want 2/2", got)
	}
}

// asking is a client whose sidecar learns on demand, while there is nobody to ask.
type asking struct{ *Namespace }

func onDemandClient(ns *Namespace) asking {
	ns.T.Helper()
	ns.withMeshConfig("accessLogFile: /dev/stdout")
	a := asking{NewNamespace(ns.T, ns.Cluster, "asking", injected, restricted, withDiscovery(mesh.OnDemand))}
	a.Deploy(App{Name: "echo"}, client)
	a.Apply(doors("used", "never-used"))
	a.answered("http://used/")
	return a
}

// meanwhile: what was used works; what was not ends in bounded time, and the access log says why.
func (a asking) meanwhile() {
	t := a.T
	t.Helper()
	results := make(chan Results, 2)
	for _, url := range []string{"http://never-used/", "tcp://never-used:9001"} {
		go func() {
			rs, err := a.TryCall(fromClient, "-timeout", "30s", "-d", "hello", url)
			if err != nil {
				t.Error(err)
			}
			results <- rs
		}()
	}
	if rs := a.Call(fromClient, "-n", "50", "-c", "5", "http://used/"); rs.Statuses()["200"] != 50 {
		t.Errorf("a host that was used before, without a control plane: %v", rs.Failures())
	}
	for range 2 {
		for _, r := range <-results {
			if r.Status != 0 && r.Status != 504 || r.Status == 0 && r.Error == "" || r.Millis > 25000 {
				t.Errorf("a host that was never used, without a control plane: %+v", r)
			}
			t.Logf("a host that was never used, without a control plane: status %d %s after %.0f ms", r.Status, r.Error, r.Millis)
		}
	}
	Eventually(t, "the access log has the flag of a request that waited in vain", func() error {
		log := a.Kubectl("logs", "deploy/"+fromClient, "-c", "istio-proxy", "--tail", "50")
		for line := range strings.Lines(log) {
			if strings.Contains(line, "never-used") && strings.Contains(line, " 504 SI ") {
				return nil
			}
		}
		return fmt.Errorf("the log:\n%s", log)
	})
}

// afterwards it works.
func (a asking) afterwards() {
	a.T.Helper()
	for _, url := range []string{"http://never-used/", "tcp://never-used:9001"} {
		Eventually(a.T, url+" answers", func() error {
			if r := a.Call(fromClient, "-d", "hello", url)[0]; r.Error != "" || r.Status != 200 && r.Body != "v1 hello\n" {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
}

// everyProxyConnected waits until weftd has one stream for each proxy of the cluster, those of pods that an
// earlier test is still taking away gone, and returns how many there are.
func everyProxyConnected(plain *Namespace) (proxies int) {
	plain.T.Helper()
	Eventually(plain.T, "every proxy is connected", func() error {
		pods, err := plain.Cluster.Pods(plain.T.Context(), "", "service.istio.io/canonical-name")
		if err != nil {
			return err
		}
		proxies = len(slices.DeleteFunc(pods, func(p corev1.Pod) bool {
			return p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning
		}))
		if n := counter(plain.weftdMetrics(), `pilot_xds`); n != proxies || proxies == 0 {
			return fmt.Errorf("weftd has %d streams, and there are %d pods with proxies", n, proxies)
		}
		return nil
	})
	return proxies
}

// late has no Service, so that what proxies are told stays what it was.
var late = App{Name: "late", Hold: true}

// refusedMeanwhile looks at new pods while there is no control plane: where sidecars are
// due there is no pod rather than one without a sidecar; elsewhere nobody notices.
func refusedMeanwhile(t *testing.T, ns, plain *Namespace) {
	t.Helper()
	ns.Apply(late.YAML())
	Eventually(t, "the Deployment tells why it has no pod", func() error {
		if pods := ns.pods("app=late"); len(pods) > 0 {
			t.Fatalf("a pod was admitted without the webhook: %s", pods[0].Name)
		}
		out := ns.Kubectl("get", "events")
		for _, word := range []string{"FailedCreate", "sidecar-injector.istio.io", "istiod"} {
			if !strings.Contains(out, word) {
				return fmt.Errorf("no event with %q:\n%s", word, out)
			}
		}
		return nil
	})
	ns.Kubectl("delete", "deploy", late.Deployment())
	plain.Deploy(late)
	if got := plain.readyColumn("late"); got != "1/1" {
		t.Errorf("a pod outside the mesh: READY is %s, want 1/1", got)
	}
	plain.Kubectl("delete", "deploy", late.Deployment())
}

// TestS65OneOfThreeControlPlanesMayDie: a budget keeps two of three; one crashes, one is
// drained, a rule changes meanwhile, and no request fails.
func TestS65OneOfThreeControlPlanesMayDie(t *testing.T) {
	onKubernetes(t, "the sandbox has one control plane")
	ns, plain := alone(t), outside(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2"}, client)
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 100, 0)))
	ns.onlyVersion("v1", 20, "http://echo/")

	system := system(ns)
	if out := system.Kubectl("get", "pdb", "-o", "name"); !strings.Contains(out, "istiod") {
		ns.ApplyWhile("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: istiod, namespace: istio-system}\nspec: {minAvailable: 2, selector: {matchLabels: {app: istiod}}}\n")
	}
	before := len(system.pods("app=istiod"))
	system.Kubectl("scale", "deploy/istiod", "--replicas=3")
	t.Cleanup(func() {
		system.Kubectl("scale", "deploy/istiod", "--replicas="+strconv.Itoa(before))
		system.WaitRollout("istiod")
	})
	system.WaitRollout("istiod")
	// New proxies spread over the replicas; those that run stay where they are until that goes.
	ns.Kubectl("rollout", "restart", "deploy/echo-v1", "deploy/echo-v2")
	ns.WaitRollout("echo-v1")
	ns.WaitRollout("echo-v2")

	results := ns.load(50*time.Second, "http://echo/")
	at := func(version, when string) {
		t.Helper()
		weights := map[string][]any{"v1": {100, 0}, "v2": {0, 100}}
		rule := virtualService("echo", fmt.Sprintf(weighted, weights[version]...))
		// Until the node has heard of a crash, one in three connections to the validating webhook is refused. Who applies tries again.
		Eventually(t, "the rule is accepted", func() error {
			_, err := ns.Cluster.Run(t.Context(), rule, "-n", ns.Name, "apply", "-f", "-")
			return err
		})
		start := time.Now()
		ns.onlyVersion(version, 20, "http://echo/")
		t.Logf("a rule changed %s is in force after %v", when, time.Since(start).Round(10*time.Millisecond))
	}
	pods := system.pods("app=istiod")
	if len(pods) != 3 {
		t.Fatalf("%d pods of istiod, want 3", len(pods))
	}
	kill(ns, busiest(plain, pods), "weftd")
	at("v2", "right after a crash")
	Eventually(t, "three replicas again", func() error { return system.ready("app=istiod", 3) })

	pods = system.pods("app=istiod")
	gone := busiest(plain, pods)
	system.Kubectl("delete", "pod", gone.Name, "--wait=false")
	at("v1", "while one drains")
	Eventually(t, "three replicas again", func() error { return system.ready("app=istiod", 3) })
	noneFailed(t, "one of three control planes crashed, one drained", results(), 1000)
}

// ready is an error unless n live pods match the selector and all are ready.
func (ns *Namespace) ready(selector string, n int) error {
	ns.T.Helper()
	pods := ns.pods(selector)
	ready := 0
	for _, p := range pods {
		if isReady(&p) {
			ready++
		}
	}
	if len(pods) != n || ready != n {
		return fmt.Errorf("%d of %d pods are ready, want %d", ready, len(pods), n)
	}
	return nil
}

// busiest is the replica of weftd with most proxies.
func busiest(plain *Namespace, pods []corev1.Pod) *corev1.Pod {
	plain.T.Helper()
	best, most := &pods[0], -1
	for i := range pods {
		if n := counter(plain.metricsOf(&pods[i]), "pilot_xds"); n > most {
			best, most = &pods[i], n
		}
	}
	return best
}

// metricsOf reads port 15014 of one replica as Prometheus does.
func (ns *Namespace) metricsOf(pod *corev1.Pod) string {
	ns.T.Helper()
	return ns.Call(fromClient, "http://"+pod.Status.PodIP+":15014/metrics")[0].Body
}

// weftdMetrics are the metrics pages of all replicas, one after another.
func (ns *Namespace) weftdMetrics() string {
	ns.T.Helper()
	var pages strings.Builder
	for _, p := range system(ns).pods("app=istiod") {
		pages.WriteString(ns.metricsOf(&p))
	}
	return pages.String()
}

// counter returns the sum of one sample over the metrics pages; 0 when it is not there.
func counter(pages, sample string) int {
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(sample)+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(pages, -1) {
		if v, err := strconv.ParseFloat(m[1], 64); err == nil {
			sum += v
		}
	}
	return int(sum)
}
