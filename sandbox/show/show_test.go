package show

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

func TestPodStatusReadsLikeKubectls(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	yes, no := true, false
	sidecar := corev1.Container{Name: "istio-proxy", RestartPolicy: &always}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	exited := func(code int32, reason string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: ago(90 * time.Second)}}
	}
	app := func(s corev1.ContainerState, ready bool) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{Name: "app", State: s, Ready: ready}}
	}
	proxy := func(s corev1.ContainerState, started *bool, ready bool) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{Name: "istio-proxy", State: s, Started: started, Ready: ready}}
	}
	for name, c := range map[string]struct {
		init    []corev1.Container
		initSt  []corev1.ContainerStatus
		st      []corev1.ContainerStatus
		phase   corev1.PodPhase
		deleted bool
		want    PodRow
	}{
		"plain":                     {st: app(running, true), phase: "Running", want: PodRow{"1/1", "Running", "0"}},
		"not ready":                 {st: app(running, false), phase: "Running", want: PodRow{"0/1", "Running", "0"}},
		"injected":                  {init: []corev1.Container{sidecar}, initSt: proxy(running, &yes, true), st: app(running, true), phase: "Running", want: PodRow{"2/2", "Running", "0"}},
		"proxy got unready":         {init: []corev1.Container{sidecar}, initSt: proxy(running, &yes, false), st: app(running, true), phase: "Running", want: PodRow{"1/2", "Running", "0"}},
		"proxy waits for redirects": {init: []corev1.Container{sidecar}, initSt: proxy(running, &no, false), st: app(waiting("PodInitializing"), false), phase: "Pending", want: PodRow{"0/2", "Init:0/1", "0"}},
		"proxy crashes":             {init: []corev1.Container{sidecar}, initSt: proxy(waiting("CrashLoopBackOff"), &no, false), st: app(waiting("PodInitializing"), false), phase: "Pending", want: PodRow{"0/2", "Init:CrashLoopBackOff", "0"}},
		"being made":                {st: app(waiting("ContainerCreating"), false), phase: "Pending", want: PodRow{"0/1", "ContainerCreating", "0"}},
		"no image":                  {st: app(waiting("ErrImagePull"), false), phase: "Pending", want: PodRow{"0/1", "ErrImagePull", "0"}},
		"restarted": {st: []corev1.ContainerStatus{{Name: "app", State: running, Ready: true, RestartCount: 2, LastTerminationState: exited(1, "Error")}}, phase: "Running",
			want: PodRow{"1/1", "Running", "2 (90s ago)"}},
		"done":   {st: app(exited(0, "Completed"), false), phase: "Succeeded", want: PodRow{"0/1", "Completed", "0"}},
		"failed": {st: app(exited(3, ""), false), phase: "Failed", want: PodRow{"0/1", "ExitCode:3", "0"}},
		"job done, its sidecar ended after it": {init: []corev1.Container{sidecar}, initSt: proxy(exited(0, "Completed"), &no, false), st: app(exited(0, "Completed"), false), phase: "Succeeded",
			want: PodRow{"0/2", "Completed", "0"}},
		"job failed, its sidecar ended after it": {init: []corev1.Container{sidecar}, initSt: proxy(exited(0, "Completed"), &no, false), st: app(exited(3, "Error"), false), phase: "Failed",
			want: PodRow{"0/2", "Error", "0"}},
		"going":     {st: app(running, true), phase: "Running", deleted: true, want: PodRow{"1/1", "Terminating", "0"}},
		"not bound": {phase: "Pending", want: PodRow{"0/1", "Pending", "0"}},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: c.init, Containers: []corev1.Container{{Name: "app"}}}, Status: corev1.PodStatus{Phase: c.phase, InitContainerStatuses: c.initSt, ContainerStatuses: c.st}}
		if c.deleted {
			at := ago(0)
			p.DeletionTimestamp = &at
		}
		if got := Pod(p, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestAges(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": -time.Second, "119s": 119 * time.Second, "2m": 120 * time.Second, "5m12s": 312 * time.Second, "5m10s": 310 * time.Second,
		"10m": 10*time.Minute + 5*time.Second, "179m": 179 * time.Minute, "3h": 3 * time.Hour, "5h20m": 5*time.Hour + 20*time.Minute,
		"47h": 47 * time.Hour, "2d": 48 * time.Hour, "3d10h": 82 * time.Hour, "30d": 30 * 24 * time.Hour,
	} {
		if got := Age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// objects reads testdata/objects.yaml, status included, with ages that do not move.
func objects(t *testing.T) map[string][]store.Object {
	t.Helper()
	data, err := os.ReadFile("testdata/objects.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]store.Object{}
	for _, d := range api.Split("objects.yaml", data) {
		read, err := api.Read(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range read {
			k, _ := store.KindFor(o)
			o.SetCreationTimestamp(ago(5 * time.Minute))
			if p, ok := o.(*corev1.Pod); ok {
				start := ago(5 * time.Minute)
				p.Status.StartTime = &start
			}
			out[k.Plural] = append(out[k.Plural], o)
		}
	}
	return out
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test ./sandbox/show -update rewrites it):\n%s", path, got)
	}
}

func TestTables(t *testing.T) {
	all := objects(t)
	var b bytes.Buffer
	for _, k := range store.Kinds {
		if len(all[k.Plural]) == 0 {
			continue
		}
		for _, o := range []Options{{Now: now}, {Now: now, Wide: true, Namespace: k.Namespaced, ShowLabels: true}} {
			if err := Table(&b, k, all[k.Plural], o); err != nil {
				t.Fatal(err)
			}
			b.WriteByte('\n')
		}
	}
	golden(t, "tables.txt", b.Bytes())
}

func TestDescriptions(t *testing.T) {
	all := objects(t)
	var b bytes.Buffer
	event := &corev1.Event{Type: "Warning", Reason: "Unhealthy", Message: "Startup probe failed: connection refused", Count: 8, Source: corev1.EventSource{Component: "kubelet"}, FirstTimestamp: ago(10 * time.Second), LastTimestamp: ago(3 * time.Second)}
	for _, kind := range []string{"pods", "deployments", "services", "virtualservices", "configmaps"} {
		for _, o := range all[kind] {
			var events []*corev1.Event
			if kind == "pods" {
				events = append(events, event)
			}
			if err := Describe(&b, o, events, nil, now); err != nil {
				t.Fatal(err)
			}
			b.WriteString("\n---\n")
		}
	}
	golden(t, "describe.txt", b.Bytes())
}

func TestOutputFormats(t *testing.T) {
	pods := objects(t)["pods"]
	print := func(format string, single bool) string {
		t.Helper()
		f, err := ParseFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := f.Print(&b, pods[:1], single, false); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := print("name", true); got != "pod/reviews-v1-abc\n" {
		t.Errorf("name: %q", got)
	}
	if got := print("jsonpath={.status.podIP} {.missing}", true); got != "10.244.0.7 " {
		t.Errorf("jsonpath: %q", got)
	}
	if got := print(`jsonpath={.items[*].metadata.labels.app\.kubernetes\.io/name}`, false); got != "reviews" {
		t.Errorf("jsonpath of a list: %q", got)
	}
	var back corev1.Pod
	if err := kyaml.UnmarshalStrict([]byte(print("yaml", true)), &back); err != nil || back.Status.PodIP != "10.244.0.7" {
		t.Errorf("yaml does not read back: %v %s", err, back.Status.PodIP)
	}
	if got := print("json", false); !strings.HasPrefix(got, "{\n    \"apiVersion\": \"v1\",\n    \"items\": [") {
		t.Errorf("json: %.60s", got)
	}
	if got, want := print("custom-columns=NAME:.metadata.name,NODE:{.spec.nope},MAIN:.spec.containers[*].name", false), "NAME             NODE     MAIN\nreviews-v1-abc   <none>   app\n"; got != want {
		t.Errorf("custom-columns:\n%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{"xml", "jsonpath=", "jsonpath={.a", "custom-columns=a", "custom-columns=A:{.x", "custom-columns="} {
		if _, err := ParseFormat(bad); err == nil {
			t.Errorf("-o %s is taken", bad)
		}
	}
}

func TestEventsOfOneSecondComeInTheirOrder(t *testing.T) {
	event := func(reason, version string, age time.Duration) store.Object {
		return &corev1.Event{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}, Reason: reason, LastTimestamp: ago(age)}
	}
	events := []store.Object{event("Started", "11", 0), event("Scheduled", "9", 0), event("Created", "10", 0), event("Killing", "3", time.Minute)}
	SortEvents(events)
	var got []string
	for _, e := range events {
		got = append(got, e.(*corev1.Event).Reason)
	}
	if want := "Killing Scheduled Created Started"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestSorting(t *testing.T) {
	pod := func(name, weight string) store.Object {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if weight != "" {
			p.Labels = map[string]string{"weight": weight}
		}
		return p
	}
	pods := []store.Object{pod("c", "10"), pod("a", "9"), pod("b", "")}
	for path, want := range map[string]string{".metadata.name": "a b c", "{.metadata.labels.weight}": "b a c"} {
		if err := SortBy(pods, path); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range pods {
			got = append(got, p.GetName())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("by %s: %v, want %s", path, got, want)
		}
	}
	for _, bad := range []string{".metadata.nope", "{.x"} {
		if SortBy(pods, bad) == nil {
			t.Errorf("--sort-by=%s is taken", bad)
		}
	}
}

func TestConditions(t *testing.T) {
	all := objects(t)
	for cond, want := range map[string]bool{
		"condition=Ready": false, "condition=ready=false": true, "condition=PodScheduled": true, "jsonpath={.status.phase}=Pending": true,
		"jsonpath={.status.phase}=Running": false, "jsonpath={.status.podIP}": true, "jsonpath={.status.nope}": false, "delete": false,
	} {
		met, err := ParseCondition(cond)
		if err != nil {
			t.Errorf("%s: %v", cond, err)
			continue
		}
		if got, err := met(all["pods"][0]); got != want || err != nil {
			t.Errorf("%s: %t %v, want %t", cond, got, err, want)
		}
	}
	for _, bad := range []string{"", "Ready", "condition=", "jsonpath={"} {
		if _, err := ParseCondition(bad); err == nil {
			t.Errorf("--for=%s is taken", bad)
		}
	}
}
