package show

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// Describe prints one object for reading: what it is, how it is doing and what
// happened to it. events are those of the object, slices those of a Service.
func Describe(w io.Writer, o store.Object, events []*corev1.Event, slices []*discoveryv1.EndpointSlice, now time.Time) error {
	d := &description{w: w, now: now}
	d.line(0, "Name", o.GetName())
	if o.GetNamespace() != "" {
		d.line(0, "Namespace", o.GetNamespace())
	}
	if p, ok := o.(*corev1.Pod); ok {
		d.line(0, "Service Account", p.Spec.ServiceAccountName)
		d.line(0, "Node", none(p.Spec.NodeName))
		if p.Status.StartTime != nil {
			d.line(0, "Start Time", p.Status.StartTime.Format(time.RFC1123Z))
		}
	}
	d.pairs(0, "Labels", o.GetLabels(), "=")
	annotations := map[string]string{}
	for k, v := range o.GetAnnotations() {
		if k != api.LastApplied {
			annotations[k] = v
		}
	}
	d.pairs(0, "Annotations", annotations, ": ")
	switch t := o.(type) {
	case *corev1.Pod:
		d.pod(t)
	case *appsv1.Deployment:
		d.deployment(t)
	case *corev1.Service:
		d.service(t, slices)
	case *corev1.ConfigMap:
		d.section("Data")
		for _, k := range sortedKeys(t.Data) {
			fmt.Fprintf(w, "%s:\n----\n%s\n\n", k, t.Data[k])
		}
	case *corev1.Secret:
		d.section("Data")
		for _, k := range sortedKeys(t.Data) {
			fmt.Fprintf(w, "%s:  %d bytes\n", k, len(t.Data[k]))
		}
	default:
		if err := d.rest(o); err != nil {
			return err
		}
	}
	d.events(events)
	return d.err
}

type description struct {
	w   io.Writer
	now time.Time
	err error
}

func (d *description) printf(format string, args ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.w, format, args...)
	}
}

func (d *description) line(indent int, key, value string) {
	width := max(18-indent, len(key)+2)
	d.printf("%s%-*s%s\n", strings.Repeat(" ", indent), width, key+":", value)
}

func (d *description) section(name string) { d.printf("%s:\n", name) }

func (d *description) pairs(indent int, title string, m map[string]string, sep string) {
	if len(m) == 0 {
		d.line(indent, title, "<none>")
		return
	}
	for i, k := range sortedKeys(m) {
		v := m[k]
		if len(v) > 140 {
			v = v[:140] + "..."
		}
		key := ""
		if i == 0 {
			key = title + ":"
		}
		d.printf("%s%-*s%s\n", strings.Repeat(" ", indent), 18-indent, key, k+sep+v)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func (d *description) pod(p *corev1.Pod) {
	row := Pod(p, d.now)
	if p.DeletionTimestamp != nil {
		d.line(0, "Status", fmt.Sprintf("Terminating (lasts %s)", Age(d.now.Sub(p.DeletionTimestamp.Time))))
	} else {
		status := string(p.Status.Phase)
		if row.Status != status {
			status += " (" + row.Status + ")"
		}
		d.line(0, "Status", status)
	}
	if p.Status.Reason != "" {
		d.line(0, "Reason", p.Status.Reason)
	}
	if p.Status.Message != "" {
		d.line(0, "Message", p.Status.Message)
	}
	d.line(0, "IP", none(p.Status.PodIP))
	if len(p.Status.PodIPs) > 0 {
		d.section("IPs")
		for _, ip := range p.Status.PodIPs {
			d.line(2, "IP", ip.IP)
		}
	}
	if ref := metav1.GetControllerOf(p); ref != nil {
		d.line(0, "Controlled By", ref.Kind+"/"+ref.Name)
	}
	d.containers("Init Containers", p.Spec.InitContainers, p.Status.InitContainerStatuses)
	d.containers("Containers", p.Spec.Containers, p.Status.ContainerStatuses)
	d.section("Conditions")
	d.printf("  %-28s%s\n", "Type", "Status")
	for _, c := range p.Status.Conditions {
		d.printf("  %-28s%s", c.Type, c.Status)
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			d.printf("  %s: %s", c.Reason, c.Message)
		}
		d.printf("\n")
	}
	if len(p.Spec.Volumes) > 0 {
		d.section("Volumes")
		for _, v := range p.Spec.Volumes {
			d.printf("  %s:\n    Type:  %s\n", v.Name, volumeType(v))
		}
	}
}

func volumeType(v corev1.Volume) string {
	switch {
	case v.ConfigMap != nil:
		return "ConfigMap " + v.ConfigMap.Name
	case v.Secret != nil:
		return "Secret " + v.Secret.SecretName
	case v.EmptyDir != nil:
		return "EmptyDir"
	case v.HostPath != nil:
		return "HostPath " + v.HostPath.Path
	case v.DownwardAPI != nil:
		return "DownwardAPI"
	case v.Projected != nil:
		var parts []string
		for _, s := range v.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				parts = append(parts, fmt.Sprintf("token (audience %s)", none(s.ServiceAccountToken.Audience)))
			case s.ConfigMap != nil:
				parts = append(parts, "ConfigMap "+s.ConfigMap.Name)
			case s.Secret != nil:
				parts = append(parts, "Secret "+s.Secret.Name)
			case s.DownwardAPI != nil:
				parts = append(parts, "DownwardAPI")
			}
		}
		return "Projected: " + strings.Join(parts, ", ")
	}
	return "other"
}

func (d *description) containers(title string, list []corev1.Container, statuses []corev1.ContainerStatus) {
	if len(list) == 0 {
		return
	}
	d.section(title)
	for _, c := range list {
		d.printf("  %s:\n", c.Name)
		var st corev1.ContainerStatus
		for _, s := range statuses {
			if s.Name == c.Name {
				st = s
			}
		}
		if st.ContainerID != "" {
			d.line(4, "Container ID", st.ContainerID)
		}
		d.line(4, "Image", c.Image)
		var ports []string
		for _, p := range c.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol))
		}
		d.line(4, "Ports", none(strings.Join(ports, ", ")))
		if len(c.Command) > 0 {
			d.line(4, "Command", shorten(strings.Join(c.Command, " ")))
		}
		if len(c.Args) > 0 {
			d.line(4, "Args", shorten(strings.Join(c.Args, " ")))
		}
		d.state("State", st.State)
		if st.LastTerminationState != (corev1.ContainerState{}) {
			d.state("Last State", st.LastTerminationState)
		}
		d.line(4, "Ready", yesNo(st.Ready))
		d.line(4, "Restart Count", fmt.Sprint(st.RestartCount))
		for name, p := range map[string]*corev1.Probe{"Startup": c.StartupProbe} {
			if p != nil {
				d.line(4, name, Probe(p))
			}
		}
		if c.LivenessProbe != nil {
			d.line(4, "Liveness", Probe(c.LivenessProbe))
		}
		if c.ReadinessProbe != nil {
			d.line(4, "Readiness", Probe(c.ReadinessProbe))
		}
		for i, e := range c.Env {
			if i == 0 {
				d.printf("    Environment:\n")
			}
			v := shorten(e.Value)
			if f := e.ValueFrom; f != nil {
				switch {
				case f.FieldRef != nil:
					v = "(" + f.FieldRef.FieldPath + ")"
				case f.ConfigMapKeyRef != nil:
					v = fmt.Sprintf("<set to the key '%s' of config map '%s'>", f.ConfigMapKeyRef.Key, f.ConfigMapKeyRef.Name)
				case f.SecretKeyRef != nil:
					v = fmt.Sprintf("<set to the key '%s' in secret '%s'>", f.SecretKeyRef.Key, f.SecretKeyRef.Name)
				}
			}
			d.printf("      %s:  %s\n", e.Name, v)
		}
		for i, m := range c.VolumeMounts {
			if i == 0 {
				d.printf("    Mounts:\n")
			}
			mode := "rw"
			if m.ReadOnly {
				mode = "ro"
			}
			d.printf("      %s from %s (%s)\n", m.MountPath, m.Name, mode)
		}
	}
}

func yesNo(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// shorten keeps a bootstrap of 20 kB from filling the screen.
func shorten(s string) string {
	s = strings.ReplaceAll(s, "\n", " ")
	if len(s) > 200 {
		return fmt.Sprintf("%s... (%d characters)", s[:200], len(s))
	}
	return s
}

func (d *description) state(title string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(4, title, "Running")
		d.line(6, "Started", s.Running.StartedAt.Format(time.RFC1123Z))
	case s.Waiting != nil:
		d.line(4, title, "Waiting")
		d.line(6, "Reason", s.Waiting.Reason)
		if s.Waiting.Message != "" {
			d.line(6, "Message", s.Waiting.Message)
		}
	case s.Terminated != nil:
		d.line(4, title, "Terminated")
		d.line(6, "Reason", s.Terminated.Reason)
		if s.Terminated.Message != "" {
			d.line(6, "Message", s.Terminated.Message)
		}
		d.line(6, "Exit Code", fmt.Sprint(s.Terminated.ExitCode))
		d.line(6, "Finished", s.Terminated.FinishedAt.Format(time.RFC1123Z))
	default:
		d.line(4, title, "Waiting")
	}
}

// Probe prints a probe as kubectl describe does.
func Probe(p *corev1.Probe) string {
	what := "unknown"
	switch {
	case p.HTTPGet != nil:
		what = fmt.Sprintf("http-get %s://%s:%s%s", strings.ToLower(string(p.HTTPGet.Scheme)), p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path)
	case p.Exec != nil:
		what = "exec " + fmt.Sprint(p.Exec.Command)
	case p.TCPSocket != nil:
		what = fmt.Sprintf("tcp-socket %s:%s", p.TCPSocket.Host, p.TCPSocket.Port.String())
	case p.GRPC != nil:
		what = fmt.Sprintf("grpc <pod>:%d", p.GRPC.Port)
	}
	return fmt.Sprintf("%s delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", what, p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
}

func (d *description) deployment(t *appsv1.Deployment) {
	d.line(0, "Selector", metav1.FormatLabelSelector(t.Spec.Selector))
	d.line(0, "Replicas", fmt.Sprintf("%d desired | %d updated | %d total | %d available | %d unavailable", deref(t.Spec.Replicas), t.Status.UpdatedReplicas, t.Status.Replicas, t.Status.AvailableReplicas, t.Status.UnavailableReplicas))
	d.line(0, "StrategyType", string(t.Spec.Strategy.Type))
	d.section("Pod Template")
	d.pairs(2, "Labels", t.Spec.Template.Labels, "=")
	d.pairs(2, "Annotations", t.Spec.Template.Annotations, ": ")
	d.line(2, "Service Account", none(t.Spec.Template.Spec.ServiceAccountName))
	d.line(2, "Images", containers(&t.Spec.Template.Spec, true))
	d.section("Conditions")
	for _, c := range t.Status.Conditions {
		d.printf("  %-16s%-8s%s", c.Type, c.Status, c.Reason)
		if c.Type == appsv1.DeploymentReplicaFailure {
			d.printf("  %s", c.Message)
		}
		d.printf("\n")
	}
}

func (d *description) service(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	d.line(0, "Selector", none(labelList(s.Spec.Selector)))
	d.line(0, "Type", string(s.Spec.Type))
	d.line(0, "IP", none(s.Spec.ClusterIP))
	d.line(0, "IPs", none(strings.Join(s.Spec.ClusterIPs, ",")))
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		d.line(0, "LoadBalancer", externalIP(s))
	}
	for _, p := range s.Spec.Ports {
		d.line(0, "Port", fmt.Sprintf("%s  %d/%s", none(p.Name), p.Port, p.Protocol))
		d.line(0, "TargetPort", fmt.Sprintf("%s/%s", p.TargetPort.String(), p.Protocol))
		var eps []string
		for _, sl := range slices {
			for _, sp := range sl.Ports {
				if sp.Name == nil || *sp.Name != p.Name || sp.Port == nil {
					continue
				}
				for _, e := range sl.Endpoints {
					if e.Conditions.Ready == nil || *e.Conditions.Ready {
						eps = append(eps, fmt.Sprintf("%s:%d", e.Addresses[0], *sp.Port))
					}
				}
			}
		}
		d.line(0, "Endpoints", none(strings.Join(eps, ",")))
	}
}

// rest prints what an author wrote in kinds that have no layout of their own.
func (d *description) rest(o store.Object) error {
	m, err := plain(o)
	if err != nil {
		return err
	}
	delete(m, "metadata")
	b, err := kyaml.Marshal(m)
	if err != nil {
		return err
	}
	d.printf("%s", b)
	return nil
}

func (d *description) events(events []*corev1.Event) {
	if len(events) == 0 {
		d.line(0, "Events", "<none>")
		return
	}
	sort.SliceStable(events, func(i, j int) bool { return earlier(events[i], events[j]) })
	d.section("Events")
	rows := [][5]string{{"Type", "Reason", "Age", "From", "Message"}, {"----", "------", "----", "----", "-------"}}
	for _, e := range events {
		age := Age(d.now.Sub(e.LastTimestamp.Time))
		if e.Count > 1 {
			age += fmt.Sprintf(" (x%d over %s)", e.Count, Age(d.now.Sub(e.FirstTimestamp.Time)))
		}
		rows = append(rows, [5]string{e.Type, e.Reason, age, e.Source.Component, strings.TrimSpace(e.Message)})
	}
	var width [4]int
	for _, r := range rows {
		for i := range width {
			width[i] = max(width[i], len(r[i]))
		}
	}
	for _, r := range rows {
		d.printf("  %-*s  %-*s  %-*s  %-*s  %s\n", width[0], r[0], width[1], r[1], width[2], r[2], width[3], r[3], r[4])
	}
}
