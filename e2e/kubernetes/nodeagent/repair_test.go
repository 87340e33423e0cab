package nodeagent

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPodsThatStartedWithoutThePluginAreRepairedLive: the mesh's node agent comes to a node on which pods of the mesh run already, among them a Job's that never
// restarts. They are redirected from then on, without a restart, and people are told.
func TestPodsThatStartedWithoutThePluginAreRepairedLive(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	service := c.start(c.app(ns, "service"))
	job := c.app(ns, "job")
	job.Spec.RestartPolicy = corev1.RestartPolicyNever
	job.Spec.Containers[0].Args = []string{"probe", "--until=" + nothing, c.target}
	job = c.start(job)
	stranger := c.app(ns, "stranger")
	stranger.Annotations = nil
	stranger = c.start(stranger)
	for _, p := range []*corev1.Pod{service, job, stranger} {
		c.sees(p, outside) // and so the listener answers whoever is not redirected
	}

	deployed := time.Now()
	c.deploy(nil)
	var repaired time.Time
	for _, p := range []*corev1.Pod{service, job} {
		if at := c.sees(p, nothing); at.After(repaired) {
			repaired = at
		}
		if n := c.restarts(p); n != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, n)
		}
		c.event(ns, p.Name, "RedirectRepaired", "without a restart: its network was made without weft-cni")
	}
	c.rolledOut()
	agent := c.agentPod()
	started := agent.Status.ContainerStatuses[0].State.Running.StartedAt
	t.Logf("kubectl apply of the DaemonSet -> both pods redirected: %s (its container started %s)", repaired.Sub(deployed).Round(time.Millisecond), started.Format("15:04:05"))
	if took := repaired.Sub(deployed); took > 30*time.Second {
		t.Errorf("they were repaired after %s", took)
	}
	if v := c.metric(`weft_node_repairs_total{reason="start",result="repaired"}`); v != "2" {
		t.Errorf("metric of repairs: %q, want 2", v)
	}
	c.sees(stranger, outside)
	c.phase(job, corev1.PodSucceeded)
	if n := c.restarts(job); n != 0 {
		t.Errorf("the job's pod: %d restarts", n)
	}
}

// TestRulesThatSomebodyFlushedComeBack within milliseconds, and an event says what was wrong.
func TestRulesThatSomebodyFlushedComeBack(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	c.install(nil)
	p := c.app(ns, "app")
	p.Spec.Containers[0].Args = []string{"probe", "--each=5ms", c.target}
	p = c.start(p)
	c.sees(p, nothing)
	c.never(p)
	netns := c.netns(p)
	// Rules that are gone when the agent first looks at a pod count as a start without the plugin.
	c.within(patience, func() string {
		if n := c.metric("weft_node_redirected_sandboxes"); n != "1" {
			return "pods that the agent looks after: " + n
		}
		return ""
	})
	for _, damage := range [][]string{{"flush", "ruleset"}, {"delete", "table", "inet", "weft"}} {
		before := c.metric(`weft_node_repairs_total{reason="drift",result="repaired"}`)
		c.command("nsenter", append([]string{"--net=" + netns, "nft"}, damage...)...)
		c.within(patience, func() string {
			if now := c.metric(`weft_node_repairs_total{reason="drift",result="repaired"}`); now == before || now == "" {
				return "no repair is counted: " + now
			}
			return ""
		})
		if out, err := exec.Command("nsenter", "--net="+netns, "nft", "list", "table", "inet", "weft").CombinedOutput(); err != nil {
			t.Errorf("the rules are not back: %v %s", err, out)
		}
		c.sees(p, nothing)
	}
	var open time.Duration
	sights, _ := c.saw(p)
	for i, s := range sights {
		if s.what == outside && i+1 < len(sights) {
			open = max(open, sights[i+1].at.Sub(s.at))
		}
	}
	t.Logf("longest time in which the app got around the mesh: %s", open.Round(time.Millisecond))
	// A connection whose first packet left while the rules came back is tried again by the kernel a second later, and the next of the app's attempts follows.
	if open > 5*time.Second {
		t.Errorf("rules were away for %s", open)
	}
	c.event(ns, p.Name, "RedirectRepaired", "somebody had changed them")
	if n := c.restarts(p); n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// TestPodsThatEndAreNotRepaired: CNI DEL takes the rules away when a Job's pod is done or a pod is deleted. That is no drift, and nobody is told of one.
func TestPodsThatEndAreNotRepaired(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	c.install(nil)
	running := c.app(ns, "deleted")
	running.Spec.Containers[0].Args = []string{"probe", "--each=20ms", c.target}
	running = c.start(withSidecar(running))
	var jobs []*corev1.Pod
	for i := range 8 {
		job := c.app(ns, fmt.Sprintf("job-%d", i))
		job.Spec.RestartPolicy = corev1.RestartPolicyNever
		job.Spec.Containers[0].Args = []string{"probe", "--until=" + nothing, c.target}
		jobs = append(jobs, c.start(job))
	}
	for _, job := range jobs {
		c.phase(job, corev1.PodSucceeded)
	}
	c.sees(running, taken)
	if err := c.api.CoreV1().Pods(ns).Delete(context.Background(), running.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.within(patience, func() string {
		if n := c.metric("weft_node_redirected_sandboxes"); n != "0" {
			return "pods that the agent looks after: " + n
		}
		return ""
	})
	if _, body := c.get("/metrics"); strings.Contains(body, "weft_node_repairs_total{") {
		t.Errorf("repairs are counted:\n%s", body)
	}
	// Events are written after the metric, in their own time: one that is expected comes last.
	c.write("01-old.conflist", strings.Replace(c.list("old", 0), "1.0.0", "0.2.0", 1))
	c.event("default", c.Node, "MeshCNIBroken", "01-old.conflist")
	list, err := c.api.CoreV1().Events(ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if strings.HasPrefix(e.Reason, "Redirect") {
			t.Errorf("event %s about %s: %s", e.Reason, e.InvolvedObject.Name, e.Message)
		}
	}
}

// phase waits until the pod is in a phase.
func (c *cluster) phase(p *corev1.Pod, want corev1.PodPhase) {
	c.t.Helper()
	c.within(patience, func() string {
		now, err := c.api.CoreV1().Pods(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if now.Status.Phase != want {
			return fmt.Sprintf("pod %s is %s, want %s: %+v", p.Name, now.Status.Phase, want, now.Status.Conditions)
		}
		return ""
	})
}

// netns is the path of a pod's network namespace, found on the node without the agent: by the address of the pod.
func (c *cluster) netns(p *corev1.Pod) string {
	c.t.Helper()
	found := ""
	c.within(patience, func() string {
		now, err := c.api.CoreV1().Pods(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{})
		if err != nil || now.Status.PodIP == "" {
			return "it has no address"
		}
		all, err := filepath.Glob(filepath.Join(c.PodNetNSDir, "cni-*"))
		if err != nil {
			return err.Error()
		}
		for _, path := range all {
			out, err := exec.Command("nsenter", "--net="+path, "ip", "-o", "addr", "show").CombinedOutput()
			if err == nil && strings.Contains(string(out), " "+now.Status.PodIP+"/") {
				found = path
				return ""
			}
		}
		return "no network namespace of " + now.Status.PodIP + " below " + c.PodNetNSDir
	})
	return found
}
