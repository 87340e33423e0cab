package control

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// kubelet is a node on which containers start at once: a pod gets an address
// and becomes what its image says: "ready", "stuck" (never ready), "done", "fails".
type kubelet struct {
	c       *Control
	mu      sync.Mutex
	next    int
	order   []string // "start web-0", "stop web-0"
	running map[types.UID]*corev1.Pod
	refresh int
	// onStop is called while a pod is being stopped.
	onStop func(*corev1.Pod)
}

func (k *kubelet) Start(p *corev1.Pod) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next++
	k.order = append(k.order, "start "+p.Name)
	k.running[p.UID] = p
	ips := []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", k.next+1)}, {IP: fmt.Sprintf("fd00:244::%x", k.next+1)}}
	st := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ips[0].IP, PodIPs: ips}
	ready := corev1.ConditionTrue
	switch p.Spec.Containers[0].Image {
	case "stuck:1":
		ready = corev1.ConditionFalse
	case "done:1":
		st.Phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
	case "fails:1":
		st.Phase, ready = corev1.PodFailed, corev1.ConditionFalse
	}
	st.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	go k.c.SetPodStatus(p, st)
	return nil
}

func (k *kubelet) Stop(_ context.Context, uid types.UID, _ time.Duration) error {
	k.mu.Lock()
	p := k.running[uid]
	delete(k.running, uid)
	k.order = append(k.order, "stop "+p.Name)
	onStop := k.onStop
	k.mu.Unlock()
	if onStop != nil {
		onStop(p)
	}
	return nil
}

func (k *kubelet) Update(*corev1.Pod) error { return nil }
func (k *kubelet) Refresh() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refresh++
}

type world struct {
	*testing.T
	c    *Control
	node *kubelet
}

func start(t *testing.T, configure ...func(*Control)) *world {
	t.Helper()
	s := &api.Server{Store: store.New(), Networks: api.Networks{ClusterIPs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}}}
	node := &kubelet{running: map[types.UID]*corev1.Pod{}}
	c := &Control{API: s, Kubelet: node, Node: "n1"}
	node.c = c
	for _, f := range configure {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w := &world{t, c, node}
	w.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n")
	w.until("the namespace's service account", func() bool {
		return s.Store.Get(store.Key{Resource: "serviceaccounts", Namespace: "default", Name: "default"}) != nil
	})
	return w
}

func (w *world) apply(text string) {
	w.Helper()
	results, err := w.c.API.Apply(w.Context(), api.Split("test.yaml", []byte(text)), api.ApplyOptions{})
	if err != nil {
		w.Fatal(err)
	}
	for _, r := range results {
		if r.Error != "" {
			w.Fatal(r.Error)
		}
	}
}

func (w *world) until(what string, ok func() bool) {
	w.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			var pods []string
			for _, p := range w.pods("") {
				pods = append(pods, fmt.Sprintf("%s(%s ready=%t going=%t)", p.Name, p.Spec.Containers[0].Image, Ready(p), p.DeletionTimestamp != nil))
			}
			w.Fatalf("not seen: %s; pods: %v", what, pods)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (w *world) pods(image string) (out []*corev1.Pod) {
	for _, p := range store.List[*corev1.Pod](w.c.store(), "pods", "", nil) {
		if image == "" || p.Spec.Containers[0].Image == image {
			out = append(out, p)
		}
	}
	return out
}

func (w *world) readyPods(image string) (n int) {
	for _, p := range w.pods(image) {
		if Ready(p) && p.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}

func (w *world) patch(resource, name, patch string) {
	w.Helper()
	if _, err := w.c.API.Patch(store.Key{Resource: resource, Namespace: "default", Name: name}, types.MergePatchType, []byte(patch)); err != nil {
		w.Fatal(err)
	}
}

func (w *world) endpoints(svc string) (out []string) {
	for _, s := range store.List[*discoveryv1.EndpointSlice](w.c.store(), "endpointslices.discovery.k8s.io", "default", nil) {
		if s.Labels[discoveryv1.LabelServiceName] != svc {
			continue
		}
		for _, e := range s.Endpoints {
			state := "ready"
			if !*e.Conditions.Ready {
				state = "not ready"
			}
			for _, p := range s.Ports {
				out = append(out, fmt.Sprintf("%s:%d %s", e.Addresses[0], *p.Port, state))
			}
		}
	}
	sort.Strings(out)
	return out
}

func workload(kind, name, image string, replicas int) string {
	extra := ""
	switch kind {
	case "StatefulSet":
		extra = "  serviceName: " + name + "\n"
	case "DaemonSet":
		replicas = -1
	}
	if replicas >= 0 {
		extra += fmt.Sprintf("  replicas: %d\n", replicas)
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: %s
metadata: {name: %s}
spec:
%s  selector: {matchLabels: {app: %s}}
  template:
    metadata: {labels: {app: %s}}
    spec:
      containers: [{name: app, image: "%s", ports: [{name: http, containerPort: 8080}]}]
`, kind, name, extra, name, name, image)
}

const service = `apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
`

func TestADeploymentHasItsPodsAndSaysSo(t *testing.T) {
	w := start(t)
	w.apply(workload("Deployment", "web", "ready:1", 3))
	w.until("3 of 3 ready", func() bool {
		d := store.Get[*appsv1.Deployment](w.c.store(), "deployments.apps", "default", "web")
		return d.Status.ReadyReplicas == 3 && d.Status.UpdatedReplicas == 3
	})
	for _, p := range w.pods("") {
		rs := p.OwnerReferences[0]
		hash := p.Labels["pod-template-hash"]
		if rs.Kind != "ReplicaSet" || rs.Name != "web-"+hash || !strings.HasPrefix(p.Name, "web-"+hash+"-") || p.Spec.NodeName != "n1" {
			t.Errorf("pod %s: owner %s %s, labels %v, node %s", p.Name, rs.Kind, rs.Name, p.Labels, p.Spec.NodeName)
		}
	}
	w.patch("deployments.apps", "web", `{"spec":{"replicas":1}}`)
	w.until("one pod", func() bool { return len(w.pods("")) == 1 })
}

func TestARollingUpdateNeverGoesBelowWhatIsAllowed(t *testing.T) {
	w := start(t)
	w.apply(workload("Deployment", "web", "ready:1", 4) + "  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n")
	w.until("4 ready", func() bool { return w.readyPods("ready:1") == 4 })
	lowest, highest := 4, 0
	var mu sync.Mutex
	watch := w.c.store().Watch(func(e store.Event) bool { return e.Key.Resource == "pods" || e.Key.Resource == "replicasets.apps" })
	defer watch.Stop()
	go func() {
		for {
			if _, err := watch.Next(t.Context()); err != nil {
				return
			}
			mu.Lock()
			asked := 0
			for _, rs := range store.List[*appsv1.ReplicaSet](w.c.store(), "replicasets.apps", "", nil) {
				asked += int(*rs.Spec.Replicas)
			}
			lowest, highest = min(lowest, w.readyPods("")), max(highest, asked)
			mu.Unlock()
		}
	}()
	w.patch("deployments.apps", "web", `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`)
	w.until("all of the new template", func() bool {
		n := 0
		for _, p := range w.pods("") {
			if p.Annotations["kubectl.kubernetes.io/restartedAt"] == "now" {
				n++
			}
		}
		return n == 4 && len(w.pods("")) == 4
	})
	mu.Lock()
	defer mu.Unlock()
	if lowest < 4 || highest > 5 {
		t.Errorf("between %d ready and %d wanted pods during the update, want at least 4 and at most 5", lowest, highest)
	}
}

func TestRecreateStartsTheNewPodsWhenTheOldOnesAreGone(t *testing.T) {
	w := start(t)
	w.apply(workload("Deployment", "web", "ready:1", 2) + "  strategy: {type: Recreate}\n")
	w.until("2 ready", func() bool { return w.readyPods("ready:1") == 2 })
	// The last old pod stops long after its ReplicaSet has said that it has none.
	emptied := func() bool {
		for _, rs := range store.List[*appsv1.ReplicaSet](w.c.store(), "replicasets.apps", "", nil) {
			if rs.Status.Replicas > 0 {
				return false
			}
		}
		return true
	}
	w.node.mu.Lock()
	w.node.onStop = func(*corev1.Pod) {
		w.until("no replicas in any status", emptied)
		if n := len(w.pods("ready:2")); n > 0 {
			w.Errorf("%d new pods beside the old ones", n)
		}
	}
	w.node.mu.Unlock()
	w.apply(workload("Deployment", "web", "ready:2", 2) + "  strategy: {type: Recreate}\n")
	w.until("2 new ones", func() bool { return w.readyPods("ready:2") == 2 && len(w.pods("")) == 2 })
}

func TestAnUpdateThatDoesNotGetReadyLeavesTheOldPodsServing(t *testing.T) {
	w := start(t)
	w.apply(workload("Deployment", "web", "ready:1", 2) + "  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n" + "---\n" + service)
	w.until("2 endpoints", func() bool { return len(w.endpoints("web")) == 2 })
	w.apply(workload("Deployment", "web", "stuck:1", 2) + "  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n")
	w.until("a stuck pod", func() bool { return len(w.pods("stuck:1")) == 1 })
	w.until("it as an endpoint that gets no traffic", func() bool { return strings.Contains(strings.Join(w.endpoints("web"), " "), "not ready") })
	if n := w.readyPods("ready:1"); n != 2 {
		t.Errorf("%d old pods are left, want 2", n)
	}
}

func TestStatefulSetPodsComeInOrderWithStableNames(t *testing.T) {
	w := start(t)
	w.apply(workload("StatefulSet", "db", "ready:1", 3))
	w.until("3 ready", func() bool { return w.readyPods("") == 3 })
	w.node.mu.Lock()
	if got := strings.Join(w.node.order, ", "); got != "start db-0, start db-1, start db-2" {
		t.Errorf("order %s", got)
	}
	w.node.mu.Unlock()
	p := store.Get[*corev1.Pod](w.c.store(), "pods", "default", "db-1")
	if p.Spec.Hostname != "db-1" || p.Spec.Subdomain != "db" || p.Labels["apps.kubernetes.io/pod-index"] != "1" || p.Labels["statefulset.kubernetes.io/pod-name"] != "db-1" {
		t.Errorf("db-1: hostname %s.%s, labels %v", p.Spec.Hostname, p.Spec.Subdomain, p.Labels)
	}
	w.patch("statefulsets.apps", "db", `{"spec":{"replicas":1}}`)
	w.until("only db-0", func() bool { ps := w.pods(""); return len(ps) == 1 && ps[0].Name == "db-0" })
	w.apply(workload("StatefulSet", "db", "ready:2", 2))
	w.until("both of the new template", func() bool { return w.readyPods("ready:2") == 2 && len(w.pods("")) == 2 })
}

func TestADaemonSetHasOnePodAndReplacesItInPlace(t *testing.T) {
	w := start(t)
	w.apply(workload("DaemonSet", "agent", "ready:1", 0))
	w.until("one", func() bool { return w.readyPods("ready:1") == 1 })
	w.apply(workload("DaemonSet", "agent", "ready:2", 0))
	w.until("one new", func() bool { return w.readyPods("ready:2") == 1 && len(w.pods("")) == 1 })
	w.node.mu.Lock()
	defer w.node.mu.Unlock()
	if !strings.HasPrefix(w.node.order[1], "stop ") {
		t.Errorf("the new pod came before the old one had gone: %v", w.node.order)
	}
}

func job(image string, spec string) string {
	return fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec:\n%s  template:\n    spec:\n      restartPolicy: Never\n      containers: [{name: app, image: %q}]\n", spec, image)
}

func TestAJobEndsWhenEnoughPodsSucceeded(t *testing.T) {
	w := start(t)
	w.apply(job("done:1", "  completions: 3\n  parallelism: 2\n  completionMode: Indexed\n"))
	w.until("complete", func() bool {
		j := store.Get[*batchv1.Job](w.c.store(), "jobs.batch", "default", "j")
		return jobOver(&j.Status) && j.Status.Succeeded == 3
	})
	indexes := map[string]bool{}
	for _, p := range w.pods("") {
		indexes[p.Labels[batchv1.JobCompletionIndexAnnotation]] = true
	}
	if len(w.pods("")) != 3 || len(indexes) != 3 {
		t.Errorf("%d pods with indexes %v, want 3 different ones", len(w.pods("")), indexes)
	}
}

func TestAJobThatFailsTooOftenIsGivenUp(t *testing.T) {
	w := start(t)
	w.apply(job("fails:1", "  backoffLimit: 0\n"))
	w.until("failed", func() bool {
		j := store.Get[*batchv1.Job](w.c.store(), "jobs.batch", "default", "j")
		for _, c := range j.Status.Conditions {
			if c.Type == batchv1.JobFailed && c.Reason == "BackoffLimitExceeded" {
				return true
			}
		}
		return false
	})
	if n := len(w.pods("")); n != 1 {
		t.Errorf("%d pods, want the one that failed", n)
	}
}

func TestEndpointsFollowReadinessPortsAndLabels(t *testing.T) {
	w := start(t)
	w.apply(service + "---\n" + workload("Deployment", "web", "ready:1", 2))
	w.until("2 endpoints on the named port", func() bool {
		eps := w.endpoints("web")
		return len(eps) == 2 && strings.HasSuffix(eps[0], ":8080 ready")
	})
	victim := w.pods("")[0]
	w.patch("pods", victim.Name, `{"metadata":{"labels":{"app":"ghost"}}}`)
	w.until("the relabelled pod out of the endpoints, a new one in", func() bool {
		eps := strings.Join(w.endpoints("web"), " ")
		return !strings.Contains(eps, victim.Status.PodIP+":") && len(w.endpoints("web")) == 2
	})
	p := store.Get[*corev1.Pod](w.c.store(), "pods", "default", victim.Name)
	if p == nil || len(p.OwnerReferences) != 0 {
		t.Errorf("the relabelled pod must live on by itself: %v", p)
	}
}

func TestDualStackAndHeadlessEndpoints(t *testing.T) {
	w := start(t)
	w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: db}, publishNotReadyAddresses: true, ports: [{name: tcp, port: 5432}]}\n---\n" +
		workload("StatefulSet", "db", "stuck:1", 1))
	w.until("both families, published although not ready", func() bool {
		return strings.Join(w.endpoints("db"), ", ") == "10.244.0.2:5432 ready, fd00:244::2:5432 ready"
	})
	for _, s := range store.List[*discoveryv1.EndpointSlice](w.c.store(), "endpointslices.discovery.k8s.io", "default", nil) {
		if len(s.Endpoints) != 1 || s.Endpoints[0].Hostname == nil || *s.Endpoints[0].Hostname != "db-0" || *s.Endpoints[0].Zone != "z1" {
			t.Errorf("slice %s: %+v", s.Name, s.Endpoints)
		}
	}
}

// As on a cluster, nobody waits until clients know: the signal does not come after the endpoint is gone, nor the other way round.
func TestAPodLeavesTheEndpointsWhileItIsStopped(t *testing.T) {
	w := start(t)
	w.apply(service + "---\n" + workload("Deployment", "web", "ready:1", 1))
	w.until("an endpoint", func() bool { return len(w.endpoints("web")) == 1 })
	release := make(chan struct{})
	told := make(chan struct{})
	w.node.mu.Lock()
	w.node.onStop = func(*corev1.Pod) {
		close(told)
		<-release
	}
	w.node.mu.Unlock()
	old := w.pods("")[0]
	if _, err := w.c.API.Delete(store.KeyOf(old), nil); err != nil {
		t.Fatal(err)
	}
	<-told
	w.until("the endpoint not ready while its processes still run", func() bool {
		return slices.ContainsFunc(w.endpoints("web"), func(e string) bool {
			return strings.HasPrefix(e, old.Status.PodIP+":") && strings.HasSuffix(e, "not ready")
		})
	})
	w.node.mu.Lock()
	w.node.onStop = nil
	w.node.mu.Unlock()
	close(release)
	w.until("the pod gone", func() bool { return w.c.store().Get(store.KeyOf(old)) == nil })
}

func TestEveryNamespaceHasTheMeshRootAndLosesAllWhenItGoes(t *testing.T) {
	var mu sync.Mutex
	var root map[string]string
	w := start(t, func(c *Control) {
		c.RootConfig = func() map[string]string { mu.Lock(); defer mu.Unlock(); return root }
	})
	w.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	mu.Lock()
	root = map[string]string{"root-cert.pem": "one"}
	mu.Unlock()
	w.c.RootChanged()
	data := func() string {
		if cm := store.Get[*corev1.ConfigMap](w.c.store(), "configmaps", "shop", RootConfigMap); cm != nil {
			return cm.Data["root-cert.pem"]
		}
		return ""
	}
	w.until("the root", func() bool { return data() == "one" })
	mu.Lock()
	root = map[string]string{"root-cert.pem": "two"}
	mu.Unlock()
	w.c.RootChanged()
	w.until("the new root", func() bool { return data() == "two" })
	w.c.store().Remove(store.Key{Resource: "configmaps", Namespace: "shop", Name: RootConfigMap})
	w.until("it back after a deletion", func() bool { return data() == "two" })

	w.apply(strings.Replace(workload("Deployment", "web", "ready:1", 2), "{name: web}", "{name: web, namespace: shop}", 1))
	w.until("pods", func() bool { return len(w.pods("")) == 2 })
	if _, err := w.c.API.Delete(store.Key{Resource: "namespaces", Name: "shop"}, nil); err != nil {
		t.Fatal(err)
	}
	w.until("the namespace gone", func() bool { return w.c.store().Get(store.Key{Resource: "namespaces", Name: "shop"}) == nil })
	if n := len(w.pods("")); n != 0 {
		t.Errorf("%d pods are left", n)
	}
}

func TestDeletingADeploymentDeletesWhatItOwns(t *testing.T) {
	w := start(t)
	w.apply(service + "---\n" + workload("Deployment", "web", "ready:1", 2))
	w.until("pods", func() bool { return w.readyPods("") == 2 })
	for _, k := range []store.Key{{Resource: "deployments.apps", Namespace: "default", Name: "web"}, {Resource: "services", Namespace: "default", Name: "web"}} {
		if _, err := w.c.API.Delete(k, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.until("all gone", func() bool {
		return len(w.pods("")) == 0 && len(w.c.store().List("replicasets.apps", "", nil)) == 0 && len(w.c.store().List("endpointslices.discovery.k8s.io", "", nil)) == 0
	})
}

func TestARefusedPodShowsOnItsDeployment(t *testing.T) {
	w := start(t, func(c *Control) { c.API.Webhook = &api.Webhook{} })
	w.apply(`apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: injector}
webhooks:
- {name: x.istio.io, clientConfig: {url: "https://127.0.0.1:1/"}, rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]}
`)
	w.apply(workload("Deployment", "web", "ready:1", 1))
	w.until("an event on the Deployment", func() bool {
		for _, e := range store.List[*corev1.Event](w.c.store(), "events", "default", nil) {
			if e.InvolvedObject.Kind == "Deployment" && e.Reason == "FailedCreate" && strings.Contains(e.Message, `failed calling webhook "x.istio.io"`) {
				return true
			}
		}
		return false
	})
	w.until("a condition on the Deployment", func() bool {
		d := store.Get[*appsv1.Deployment](w.c.store(), "deployments.apps", "default", "web")
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure {
				return true
			}
		}
		return false
	})
	w.c.store().Remove(store.Key{Resource: "mutatingwebhookconfigurations.admissionregistration.k8s.io", Name: "injector"})
	w.until("the pod, after another try", func() bool { return w.readyPods("") == 1 })
}

func TestARefusalThatReadsDifferentlyEachTimeIsNotRetriedInALoop(t *testing.T) {
	var calls atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("call %d", calls.Add(1)), http.StatusInternalServerError)
	}))
	t.Cleanup(srv.Close)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	w := start(t, func(c *Control) { c.API.Webhook = &api.Webhook{Root: func() []byte { return root }} })
	w.apply(`apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: injector}
webhooks:
- {name: x.istio.io, clientConfig: {url: "` + srv.URL + `"}, rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]}
`)
	begin := time.Now()
	w.apply(workload("Deployment", "web", "ready:1", 1))
	w.until("five tries", func() bool { return calls.Load() >= 5 })
	// At once, perhaps again when the ReplicaSet itself changes, then after 200, 400 and 800 ms: see Control.init.
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("five tries within %s", took)
	}
}

func TestAPodWhoseNodeSelectorFitsNowhereSaysWhy(t *testing.T) {
	w := start(t)
	w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeSelector: {disk: ssd}, containers: [{name: a, image: \"ready:1\"}]}\n")
	w.until("the event", func() bool {
		for _, e := range store.List[*corev1.Event](w.c.store(), "events", "default", nil) {
			if e.Reason == "FailedScheduling" && strings.Contains(e.Message, "disk=ssd") {
				return true
			}
		}
		return false
	})
}

func TestChangedConfigMapsReachRunningPodsOnceForABurst(t *testing.T) {
	w := start(t)
	count := func() int { w.node.mu.Lock(); defer w.node.mu.Unlock(); return w.node.refresh }
	before := count()
	for i := range 20 {
		w.apply(fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {n: \"%d\"}\n", i))
	}
	w.until("a refresh", func() bool { return count() > before })
	if n := count() - before; n > 10 {
		t.Errorf("%d refreshes for a burst of 20 changes", n)
	}
}
