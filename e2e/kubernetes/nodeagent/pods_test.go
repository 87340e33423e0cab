package nodeagent

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/redirect"
)

// What an app saw at the other end of its connection; see prober.
const (
	outside = "outside" // it reached a listener beyond the pod: not redirected
	taken   = "sidecar" // redirected to the sidecar
	nothing = "nothing" // redirected, and nobody listens
)

// listenOutside is a server that is not in the mesh, on the node's own address.
func listenOutside(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, outside)
			}()
		}
	}()
	return l.Addr().String()
}

// namespace makes one for the test; its pods go with it.
func (c *cluster) namespace() string {
	c.t.Helper()
	n, err := c.api.CoreV1().Namespaces().Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "nodeagent-"}}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		now := int64(0)
		_ = c.api.CoreV1().Pods(n.Name).DeleteCollection(context.Background(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		if err := c.api.CoreV1().Namespaces().Delete(context.Background(), n.Name, metav1.DeleteOptions{}); err != nil {
			c.t.Error(err)
		}
	})
	c.within(patience, func() string {
		if _, err := c.api.CoreV1().ServiceAccounts(n.Name).Get(context.Background(), "default", metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	return n.Name
}

// injected is what the webhook would have written for a pod of the mesh.
var injected = map[string]string{redirect.Annotation: redirect.Default().Encode()}

// app is a pod that tries to reach the targets around the mesh from its first instruction on.
func (c *cluster) app(namespace, name string, targets ...string) *corev1.Pod {
	if len(targets) == 0 {
		targets = []string{c.target}
	}
	no, grace := false, int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: injected},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers:  []corev1.Container{{Name: "app", Image: proberImage, ImagePullPolicy: corev1.PullNever, Args: append([]string{"probe"}, targets...)}},
		},
	}
}

// withSidecar adds what stands in for Envoy, with the gate that a pod of the mesh has: no app before the kernel's redirection is proven.
func withSidecar(p *corev1.Pod) *corev1.Pod {
	always, uid := corev1.ContainerRestartPolicyAlways, int64(redirect.ProxyUID)
	p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
		Name: "istio-proxy", Image: proberImage, ImagePullPolicy: corev1.PullNever, Args: []string{"sidecar"}, RestartPolicy: &always,
		SecurityContext: &corev1.SecurityContext{RunAsUser: &uid, RunAsGroup: &uid},
		Env:             []corev1.EnvVar{{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
		StartupProbe: &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 600, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(redirect.PortProof)},
		}},
	})
	return p
}

// start gives a pod to the cluster.
func (c *cluster) start(p *corev1.Pod) *corev1.Pod {
	c.t.Helper()
	made, err := c.api.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return made
}

// logs is what a container has written; nil options are the pod's only container's.
func (c *cluster) logs(namespace, pod string, o *corev1.PodLogOptions) string {
	if o == nil {
		o = &corev1.PodLogOptions{}
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	text, err := c.api.CoreV1().Pods(namespace).GetLogs(pod, o).DoRaw(ctx)
	if err != nil {
		return "no logs: " + err.Error()
	}
	return string(text)
}

// sight is one thing that an app saw.
type sight struct {
	at     time.Time
	target string
	what   string
}

// saw is everything that the pod's app saw, in order; consecutive sights of a target differ.
func (c *cluster) saw(p *corev1.Pod) (out []sight, rest string) {
	c.t.Helper()
	for line := range strings.Lines(c.logs(p.Namespace, p.Name, &corev1.PodLogOptions{Container: "app"})) {
		f := strings.Fields(line)
		if len(f) != 3 {
			rest += line
			continue
		}
		ns, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			rest += line
			continue
		}
		out = append(out, sight{time.Unix(0, ns), f[1], f[2]})
	}
	return out, rest
}

// sees waits until this is the last that the app saw, of each of its targets, and gives when it saw it first.
func (c *cluster) sees(p *corev1.Pod, want string) (since time.Time) {
	c.t.Helper()
	c.within(patience, func() string {
		last := map[string]sight{}
		all, rest := c.saw(p)
		for _, s := range all {
			last[s.target] = s
		}
		if len(last) == 0 {
			return fmt.Sprintf("pod %s: its app saw nothing yet: %s", p.Name, rest)
		}
		for _, s := range last {
			if s.what != want {
				return fmt.Sprintf("pod %s: its app saw %v, want %q at last", p.Name, all, want)
			}
			since = s.at
		}
		return ""
	})
	return since
}

// never fails the test when the app got around the mesh, be it for a moment.
func (c *cluster) never(p *corev1.Pod) {
	c.t.Helper()
	sights, rest := c.saw(p)
	if len(sights) == 0 {
		c.t.Errorf("pod %s: nobody knows what its app saw: %s", p.Name, rest)
	}
	for _, s := range sights {
		if s.what == outside {
			c.t.Errorf("pod %s: its app reached %s around the mesh at %s", p.Name, s.target, s.at.Format("15:04:05.000"))
		}
	}
}

// event waits for an event about an object whose message has these words.
func (c *cluster) event(namespace, about, reason, words string) {
	c.t.Helper()
	c.within(patience, func() string {
		list, err := c.api.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err.Error()
		}
		var seen []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name != about {
				continue
			}
			if strings.Contains(e.Message, words) {
				return ""
			}
			seen = append(seen, e.Message)
		}
		return fmt.Sprintf("no event %s about %s that says %q, only %q", reason, about, words, seen)
	})
}

// restarts counts the restarts of all containers of a pod.
func (c *cluster) restarts(p *corev1.Pod) (n int32) {
	c.t.Helper()
	now, err := c.api.CoreV1().Pods(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	if now.UID != p.UID {
		c.t.Errorf("pod %s is another one by now", p.Name)
	}
	for _, s := range append(now.Status.ContainerStatuses, now.Status.InitContainerStatuses...) {
		n += s.RestartCount
	}
	return n
}
