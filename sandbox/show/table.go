package show

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/weft-mesh/weft/sandbox/store"
)

// Options choose what a table shows.
type Options struct {
	Wide       bool
	Namespace  bool // a NAMESPACE column
	Prefix     bool // "pod/x" instead of "x", for several kinds at once
	ShowLabels bool
	NoHeaders  bool
	Now        time.Time
}

type column struct {
	title string
	wide  bool // only with -o wide
	cell  func(o store.Object, now time.Time) string
}

func name() column {
	return column{title: "NAME", cell: func(o store.Object, _ time.Time) string { return o.GetName() }}
}
func age() column {
	return column{title: "AGE", cell: func(o store.Object, now time.Time) string {
		created := o.GetCreationTimestamp()
		if created.IsZero() {
			return "<unknown>"
		}
		return Age(now.Sub(created.Time))
	}}
}

// col makes a column from a function of a typed object.
func col[T store.Object](title string, f func(T, time.Time) string) column {
	return column{title: title, cell: func(o store.Object, now time.Time) string {
		if t, ok := o.(T); ok {
			return f(t, now)
		}
		return ""
	}}
}

func wide(c column) column { c.wide = true; return c }

// field makes a column from a path in an unstructured object.
func field(title string, path ...string) column {
	return column{title: title, cell: func(o store.Object, _ time.Time) string {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return ""
		}
		v, _, _ := unstructured.NestedFieldNoCopy(u.Object, path...)
		return value(v)
	}}
}

// value prints lists as kubectl's table of a custom resource does.
func value(v any) string {
	switch t := v.(type) {
	case nil:
		return ""
	case []any:
		var parts []string
		for _, e := range t {
			parts = append(parts, strconv.Quote(fmt.Sprint(e)))
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	return fmt.Sprint(v)
}

func columns(k *store.Kind) []column {
	switch k.Resource() {
	case "pods":
		row := func(f func(PodRow) string) func(*corev1.Pod, time.Time) string {
			return func(p *corev1.Pod, now time.Time) string { return f(Pod(p, now)) }
		}
		return []column{
			name(),
			col("READY", row(func(r PodRow) string { return r.Ready })),
			col("STATUS", row(func(r PodRow) string { return r.Status })),
			col("RESTARTS", row(func(r PodRow) string { return r.Restarts })),
			age(),
			wide(col("IP", func(p *corev1.Pod, _ time.Time) string { return none(p.Status.PodIP) })),
			wide(col("NODE", func(p *corev1.Pod, _ time.Time) string { return none(p.Spec.NodeName) })),
			wide(col("NOMINATED NODE", func(*corev1.Pod, time.Time) string { return "<none>" })),
			wide(col("READINESS GATES", func(*corev1.Pod, time.Time) string { return "<none>" })),
		}
	case "services":
		return []column{
			name(),
			col("TYPE", func(s *corev1.Service, _ time.Time) string { return string(s.Spec.Type) }),
			col("CLUSTER-IP", func(s *corev1.Service, _ time.Time) string { return none(s.Spec.ClusterIP) }),
			col("EXTERNAL-IP", func(s *corev1.Service, _ time.Time) string { return externalIP(s) }),
			col("PORT(S)", func(s *corev1.Service, _ time.Time) string { return servicePorts(s) }),
			age(),
			wide(col("SELECTOR", func(s *corev1.Service, _ time.Time) string { return none(labelList(s.Spec.Selector)) })),
		}
	case "deployments.apps":
		return []column{
			name(),
			col("READY", func(d *appsv1.Deployment, _ time.Time) string {
				return fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, deref(d.Spec.Replicas))
			}),
			col("UP-TO-DATE", func(d *appsv1.Deployment, _ time.Time) string { return fmt.Sprint(d.Status.UpdatedReplicas) }),
			col("AVAILABLE", func(d *appsv1.Deployment, _ time.Time) string { return fmt.Sprint(d.Status.AvailableReplicas) }),
			age(),
			wide(col("CONTAINERS", func(d *appsv1.Deployment, _ time.Time) string { return containers(&d.Spec.Template.Spec, false) })),
			wide(col("IMAGES", func(d *appsv1.Deployment, _ time.Time) string { return containers(&d.Spec.Template.Spec, true) })),
			wide(col("SELECTOR", func(d *appsv1.Deployment, _ time.Time) string { return metav1.FormatLabelSelector(d.Spec.Selector) })),
		}
	case "replicasets.apps":
		return []column{
			name(),
			col("DESIRED", func(r *appsv1.ReplicaSet, _ time.Time) string { return fmt.Sprint(deref(r.Spec.Replicas)) }),
			col("CURRENT", func(r *appsv1.ReplicaSet, _ time.Time) string { return fmt.Sprint(r.Status.Replicas) }),
			col("READY", func(r *appsv1.ReplicaSet, _ time.Time) string { return fmt.Sprint(r.Status.ReadyReplicas) }),
			age(),
		}
	case "statefulsets.apps":
		return []column{
			name(),
			col("READY", func(s *appsv1.StatefulSet, _ time.Time) string {
				return fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, deref(s.Spec.Replicas))
			}),
			age(),
			wide(col("CONTAINERS", func(s *appsv1.StatefulSet, _ time.Time) string { return containers(&s.Spec.Template.Spec, false) })),
			wide(col("IMAGES", func(s *appsv1.StatefulSet, _ time.Time) string { return containers(&s.Spec.Template.Spec, true) })),
		}
	case "daemonsets.apps":
		n := func(title string, f func(appsv1.DaemonSetStatus) int32) column {
			return col(title, func(d *appsv1.DaemonSet, _ time.Time) string { return fmt.Sprint(f(d.Status)) })
		}
		return []column{
			name(),
			n("DESIRED", func(s appsv1.DaemonSetStatus) int32 { return s.DesiredNumberScheduled }),
			n("CURRENT", func(s appsv1.DaemonSetStatus) int32 { return s.CurrentNumberScheduled }),
			n("READY", func(s appsv1.DaemonSetStatus) int32 { return s.NumberReady }),
			n("UP-TO-DATE", func(s appsv1.DaemonSetStatus) int32 { return s.UpdatedNumberScheduled }),
			n("AVAILABLE", func(s appsv1.DaemonSetStatus) int32 { return s.NumberAvailable }),
			col("NODE SELECTOR", func(d *appsv1.DaemonSet, _ time.Time) string {
				return none(labelList(d.Spec.Template.Spec.NodeSelector))
			}),
			age(),
		}
	case "jobs.batch":
		return []column{
			name(),
			col("STATUS", jobStatus),
			col("COMPLETIONS", func(j *batchv1.Job, _ time.Time) string {
				return fmt.Sprintf("%d/%d", j.Status.Succeeded, deref(j.Spec.Completions))
			}),
			col("DURATION", jobDuration),
			age(),
		}
	case "namespaces":
		return []column{name(), col("STATUS", func(n *corev1.Namespace, _ time.Time) string { return string(n.Status.Phase) }), age()}
	case "nodes":
		return []column{
			name(),
			col("STATUS", func(n *corev1.Node, _ time.Time) string {
				for _, c := range n.Status.Conditions {
					if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
						return "Ready"
					}
				}
				return "NotReady"
			}),
			col("ROLES", func(*corev1.Node, time.Time) string { return "<none>" }),
			age(),
			col("VERSION", func(n *corev1.Node, _ time.Time) string { return n.Status.NodeInfo.KubeletVersion }),
			wide(col("INTERNAL-IP", func(n *corev1.Node, _ time.Time) string {
				for _, a := range n.Status.Addresses {
					if a.Type == corev1.NodeInternalIP {
						return a.Address
					}
				}
				return "<none>"
			})),
			wide(col("KERNEL-VERSION", func(n *corev1.Node, _ time.Time) string { return n.Status.NodeInfo.KernelVersion })),
			wide(col("CONTAINER-RUNTIME", func(n *corev1.Node, _ time.Time) string { return n.Status.NodeInfo.ContainerRuntimeVersion })),
		}
	case "configmaps":
		return []column{name(), col("DATA", func(c *corev1.ConfigMap, _ time.Time) string { return fmt.Sprint(len(c.Data) + len(c.BinaryData)) }), age()}
	case "secrets":
		return []column{
			name(),
			col("TYPE", func(s *corev1.Secret, _ time.Time) string { return string(s.Type) }),
			col("DATA", func(s *corev1.Secret, _ time.Time) string { return fmt.Sprint(len(s.Data)) }),
			age(),
		}
	case "serviceaccounts":
		return []column{name(), col("SECRETS", func(s *corev1.ServiceAccount, _ time.Time) string { return fmt.Sprint(len(s.Secrets)) }), age()}
	case "endpointslices.discovery.k8s.io":
		return []column{
			name(),
			col("ADDRESSTYPE", func(s *discoveryv1.EndpointSlice, _ time.Time) string { return string(s.AddressType) }),
			col("PORTS", slicePorts),
			col("ENDPOINTS", sliceEndpoints),
			age(),
		}
	case "events":
		return []column{
			col("LAST SEEN", func(e *corev1.Event, now time.Time) string {
				if e.Count > 1 {
					return fmt.Sprintf("%s (x%d over %s)", Age(now.Sub(e.LastTimestamp.Time)), e.Count, Age(now.Sub(e.FirstTimestamp.Time)))
				}
				return Age(now.Sub(e.LastTimestamp.Time))
			}),
			col("TYPE", func(e *corev1.Event, _ time.Time) string { return e.Type }),
			col("REASON", func(e *corev1.Event, _ time.Time) string { return e.Reason }),
			col("OBJECT", func(e *corev1.Event, _ time.Time) string {
				return strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
			}),
			col("MESSAGE", func(e *corev1.Event, _ time.Time) string {
				return strings.ReplaceAll(strings.TrimSpace(e.Message), "\n", "\\n")
			}),
		}
	// The columns of Istio's CRDs (additionalPrinterColumns).
	case "virtualservices.networking.istio.io":
		return []column{name(), field("GATEWAYS", "spec", "gateways"), field("HOSTS", "spec", "hosts"), age()}
	case "destinationrules.networking.istio.io":
		return []column{name(), field("HOST", "spec", "host"), age()}
	case "serviceentries.networking.istio.io":
		return []column{name(), field("HOSTS", "spec", "hosts"), field("LOCATION", "spec", "location"), field("RESOLUTION", "spec", "resolution"), age()}
	case "workloadentries.networking.istio.io":
		return []column{name(), age(), field("ADDRESS", "spec", "address")}
	case "peerauthentications.security.istio.io":
		return []column{name(), field("MODE", "spec", "mtls", "mode"), age()}
	case "authorizationpolicies.security.istio.io":
		return []column{name(), field("ACTION", "spec", "action"), age()}
	}
	return []column{name(), age()}
}

// Table prints objects of one kind.
func Table(w io.Writer, k *store.Kind, objects []store.Object, o Options) error {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	t := NewRows(w, k, o)
	for _, obj := range objects {
		t.Row(obj)
	}
	return t.Flush()
}

// Rows prints a table row by row, for watches: a column never gets narrower, so
// that later rows stay below their titles.
type Rows struct {
	w      io.Writer
	kind   *store.Kind
	cols   []column
	o      Options
	title  bool
	widths []int
	lines  [][]string
}

// NewRows begins a table; the header comes with the first row.
func NewRows(w io.Writer, k *store.Kind, o Options) *Rows {
	r := &Rows{w: w, kind: k, o: o, title: !o.NoHeaders}
	for _, c := range columns(k) {
		if !c.wide || o.Wide {
			r.cols = append(r.cols, c)
		}
	}
	return r
}

// Reserve makes the columns wide enough for objects without printing them.
func (r *Rows) Reserve(objects []store.Object) {
	for _, o := range objects {
		r.fit(r.cells(o))
	}
}

// Row adds one object.
func (r *Rows) Row(obj store.Object) {
	if r.title {
		r.title = false
		var cells []string
		if r.o.Namespace {
			cells = append(cells, "NAMESPACE")
		}
		for _, c := range r.cols {
			cells = append(cells, c.title)
		}
		if r.o.ShowLabels {
			cells = append(cells, "LABELS")
		}
		r.lines = append(r.lines, cells)
	}
	r.lines = append(r.lines, r.cells(obj))
}

func (r *Rows) cells(obj store.Object) []string {
	now := r.o.Now
	if now.IsZero() {
		now = time.Now()
	}
	var cells []string
	if r.o.Namespace {
		cells = append(cells, obj.GetNamespace())
	}
	for _, c := range r.cols {
		cell := c.cell(obj, now)
		if c.title == "NAME" && r.o.Prefix {
			cell = r.kind.Printed() + "/" + cell
		}
		cells = append(cells, cell)
	}
	if r.o.ShowLabels {
		cells = append(cells, none(labelList(obj.GetLabels())))
	}
	return cells
}

func (r *Rows) fit(cells []string) {
	for i, c := range cells {
		if i == len(r.widths) {
			r.widths = append(r.widths, 0)
		}
		r.widths[i] = max(r.widths[i], utf8.RuneCountInString(c))
	}
}

// Flush writes what was gathered.
func (r *Rows) Flush() error {
	for _, l := range r.lines {
		r.fit(l)
	}
	for _, l := range r.lines {
		var b strings.Builder
		for i, c := range l {
			b.WriteString(c)
			if i < len(l)-1 {
				b.WriteString(strings.Repeat(" ", r.widths[i]-utf8.RuneCountInString(c)+3))
			}
		}
		b.WriteByte('\n')
		if _, err := io.WriteString(r.w, b.String()); err != nil {
			return err
		}
	}
	r.lines = nil
	return nil
}

func none(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func deref(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func labelList(m map[string]string) string {
	keys := sets.List(sets.KeySet(m))
	for i, k := range keys {
		keys[i] = k + "=" + m[k]
	}
	return strings.Join(keys, ",")
}

func containers(p *corev1.PodSpec, images bool) string {
	var out []string
	for _, c := range p.Containers {
		if images {
			out = append(out, c.Image)
		} else {
			out = append(out, c.Name)
		}
	}
	return strings.Join(out, ",")
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var ips []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		if len(ips) == 0 {
			return "<pending>"
		}
		return strings.Join(ips, ",")
	}
	return none(strings.Join(s.Spec.ExternalIPs, ","))
}

func servicePorts(s *corev1.Service) string {
	var out []string
	for _, p := range s.Spec.Ports {
		out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	return none(strings.Join(out, ","))
}

func slicePorts(s *discoveryv1.EndpointSlice, _ time.Time) string {
	var out []string
	for _, p := range s.Ports {
		if p.Port != nil {
			out = append(out, strconv.Itoa(int(*p.Port)))
		}
	}
	return unset(out)
}

// sliceEndpoints marks those that get no traffic, which kubectl leaves to "describe".
func sliceEndpoints(s *discoveryv1.EndpointSlice, _ time.Time) string {
	var out []string
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				a += "(not ready)"
			}
			out = append(out, a)
		}
	}
	return unset(out)
}

func unset(list []string) string {
	switch {
	case len(list) == 0:
		return "<unset>"
	case len(list) > 3:
		return strings.Join(list[:3], ",") + fmt.Sprintf(" + %d more...", len(list)-3)
	}
	return strings.Join(list, ",")
}

func jobStatus(j *batchv1.Job, _ time.Time) string {
	for _, c := range j.Status.Conditions {
		if c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
			return string(c.Type)
		}
	}
	if j.Spec.Suspend != nil && *j.Spec.Suspend {
		return "Suspended"
	}
	return "Running"
}

func jobDuration(j *batchv1.Job, now time.Time) string {
	if j.Status.StartTime == nil {
		return ""
	}
	end := now
	if j.Status.CompletionTime != nil {
		end = j.Status.CompletionTime.Time
	}
	return Age(end.Sub(j.Status.StartTime.Time))
}

// SortEvents puts the latest last, as people read them.
func SortEvents(objects []store.Object) {
	sort.SliceStable(objects, func(i, j int) bool {
		a, okA := objects[i].(*corev1.Event)
		b, okB := objects[j].(*corev1.Event)
		return okA && okB && earlier(a, b)
	})
}

// earlier orders events by their time, which counts whole seconds, and within one by when they were stored.
func earlier(a, b *corev1.Event) bool {
	if !a.LastTimestamp.Equal(&b.LastTimestamp) {
		return a.LastTimestamp.Before(&b.LastTimestamp)
	}
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x < y
}
