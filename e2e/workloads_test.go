package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// strict is mutual TLS for a whole namespace: what answers there came through the mesh.
const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`

// container is one of the test application's, as Pod Security's "restricted" wants it.
func container(name, args string, more ...string) string {
	return fmt.Sprintf("{name: %s, image: %q, imagePullPolicy: IfNotPresent, args: [%s], %ssecurityContext: %s}", name, Image, args, strings.Join(append(more, ""), ", "), confined)
}

// job is a Job of one pod; spec is its pod's.
func job(name, spec string) string {
	return fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: %[1]s}\nspec:\n  backoffLimit: 4\n  template:\n    metadata: {labels: {app: %[1]s}, annotations: {%[3]s}}\n    spec: {restartPolicy: Never, %[2]s}\n", name, spec, small)
}

// strictEcho is a STRICT namespace with an echo that answers a meshed client.
func strictEcho(t *testing.T) *Namespace {
	t.Helper()
	ns := versions(t)
	ns.Apply(strict)
	outside(t).refused("http://" + ns.host("echo") + "/")
	return ns
}

// lastJSON is the last line of a log that `testapp call` wrote.
func (ns *Namespace) lastJSON(args ...string) (Results, error) {
	out, err := ns.TryKubectl(append([]string{"logs"}, args...)...)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return ReadResults(lines[len(lines)-1])
}

// TestJobsEndByThemselves: a Job's pod with a sidecar completes when its own container does, and its request went through the mesh.
func TestJobsEndByThemselves(t *testing.T) {
	ns := strictEcho(t)
	ns.Apply(job("once", "containers: ["+container("app", `call, "-fail", "http://echo/"`)+"]"))
	t.Cleanup(func() { ns.TryKubectl("delete", "job", "once") })
	ns.Kubectl("wait", "--for=condition=complete", "job/once", "--timeout=60s")
	var pod corev1.Pod
	Eventually(t, "the pod ends, sidecar and all", func() error {
		pod = ns.pods("app=once")[0]
		for _, c := range pod.Status.InitContainerStatuses {
			if c.State.Terminated == nil {
				return fmt.Errorf("%s still runs: %+v", c.Name, c.State)
			}
		}
		if pod.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("the pod is %s", pod.Status.Phase)
		}
		return nil
	})
	rs, err := ns.lastJSON(pod.Name, "-c", "app")
	if err != nil {
		t.Fatal(err)
	}
	if err := hasCaller(rs[0], "spiffe://cluster.local/ns/"+ns.Name+"/sa/default"); err != nil {
		t.Error(err)
	}
}

// TestFailingJobIsTriedAgain: a failed container fails the pod although its sidecar is well, and the Job makes a new one.
func TestFailingJobIsTriedAgain(t *testing.T) {
	ns := meshed(t)
	ns.Apply(strings.Replace(job("fails", "containers: ["+container("app", `call, "-fail", "http://nobody.invalid/"`)+"]"), "backoffLimit: 4", "backoffLimit: 0", 1))
	ns.Kubectl("wait", "--for=condition=failed", "job/fails", "--timeout=60s")
	if pod := ns.pods("app=fails")[0]; pod.Status.Phase != corev1.PodFailed {
		t.Errorf("the pod is %s, want Failed", pod.Status.Phase)
	}
}

func TestCronJobsRunAndEnd(t *testing.T) {
	onKubernetes(t, "the sandbox has no CronJobs")
	ns := strictEcho(t)
	ns.Apply("apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: tick}\nspec:\n  schedule: '* * * * *'\n  jobTemplate:\n    spec:\n      template:\n        metadata: {labels: {app: tick}, annotations: {" + small + "}}\n" +
		"        spec: {restartPolicy: OnFailure, containers: [" + container("app", `call, "-fail", "http://echo/"`) + "]}\n")
	t.Cleanup(func() { ns.TryKubectl("delete", "cronjob", "tick") })
	within(t, 100*time.Second, "the minute's Job has completed", func() error {
		if out := ns.Kubectl("get", "jobs", "-o", `jsonpath={.items[*].status.succeeded}`); strings.TrimSpace(out) == "" {
			return errors.New("no Job has succeeded")
		}
		return nil
	})
}

// TestInitContainersHaveTheMesh: what an ordinary init container calls is answered, by mutual TLS.
func TestInitContainersHaveTheMesh(t *testing.T) {
	ns := strictEcho(t)
	ns.Apply(job("prepared", "initContainers: ["+container("fetch", `call, "-fail", "http://echo/"`)+"], containers: ["+container("app", `call, "-fail", "http://echo/"`)+"]"))
	t.Cleanup(func() { ns.TryKubectl("delete", "job", "prepared") })
	ns.Kubectl("wait", "--for=condition=complete", "job/prepared", "--timeout=60s")
	pod := ns.pods("app=prepared")[0]
	rs, err := ns.lastJSON(pod.Name, "-c", "fetch")
	if err != nil {
		t.Fatal(err)
	}
	if err := hasCaller(rs[0], "spiffe://cluster.local/ns/"+ns.Name+"/sa/default"); err != nil {
		t.Error(err)
	}
	for _, c := range pod.Status.InitContainerStatuses {
		if c.Name == "fetch" && c.RestartCount != 0 {
			t.Errorf("the init container needed %d restarts", c.RestartCount)
		}
	}
}

// TestStatefulSetPodsFindEachOther: by name, by mutual TLS, and again after a restart.
func TestStatefulSetPodsFindEachOther(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(client)
	ns.Apply(strict + `---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: db}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, annotations: {` + small + `}}
    spec:
      terminationGracePeriodSeconds: 5
      containers: [` + container("app", "serve", "readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}") + `]
`)
	both := func(when string) {
		t.Helper()
		ns.Kubectl("rollout", "status", "sts/db", "--timeout=90s")
		for from, to := range map[string]string{"db-0": "db-1", "db-1": "db-0"} {
			Eventually(t, from+" calls "+to+" "+when, func() error {
				rs, err := ns.Cluster.Call(t.Context(), ns.Name, from, "-no-keepalive", "http://"+to+".db:8080/")
				if err != nil {
					return err
				}
				if rs[0].Pod != to {
					return fmt.Errorf("answered by %q: %+v", rs[0].Pod, rs[0])
				}
				return hasCaller(rs[0], "spiffe://cluster.local/ns/"+ns.Name+"/sa/default")
			})
		}
	}
	both("at first")
	ns.Kubectl("rollout", "restart", "sts/db")
	both("after a restart")
	if got := ns.Call(fromClient, "-n", "20", "-no-keepalive", "http://db:8080/").Statuses(); got["200"] != 20 {
		t.Errorf("by the headless service's own name: %v", got)
	}
}

// TestRestrictedNamespaceAdmitsSidecars: Pod Security would refuse what is not restricted, and refuses nothing of ours.
func TestRestrictedNamespaceAdmitsSidecars(t *testing.T) {
	onKubernetes(t, "the sandbox has no Pod Security admission")
	ns := meshed(t)
	if _, err := ns.TryKubectl("run", "root", "--image="+Image, "--labels=sidecar.istio.io/inject=false"); err == nil || !strings.Contains(err.Error(), "restricted") {
		t.Fatalf("the namespace is not restricted: a pod without a security context: %v", err)
	}
	ns.Deploy(App{Name: "echo"}, client)
	if got := ns.readyColumn("echo"); got != "2/2" {
		t.Errorf("READY is %s, want 2/2", got)
	}
	ns.answered("http://echo/")
	if out := ns.Kubectl("get", "events"); strings.Contains(out, "PodSecurity") {
		t.Errorf("Pod Security has something to say:\n%s", out)
	}
}

// TestUserNamespacePods: hostUsers: false, where kernel and runtime can.
func TestUserNamespacePods(t *testing.T) {
	onKubernetes(t, "the sandbox has no user namespaces")
	ns, plain := meshed(t), outside(t)
	own := App{Name: "own-users", PodSpec: "hostUsers: false"}
	// Without the mesh first: what fails here is the node's.
	plain.Apply(own.YAML())
	defer plain.TryKubectl("delete", "deploy,svc", "-l", "app=own-users")
	within(t, 90*time.Second, "a pod with users of its own, without the mesh", func() error {
		err := plain.ready("app=own-users", 1)
		if err == nil {
			return nil
		}
		events := plain.Kubectl("get", "events", "--field-selector", "type=Warning")
		for line := range strings.Lines(events) {
			for _, word := range []string{"user namespace", "userns", "idmap"} {
				if strings.Contains(line, "own-users") && strings.Contains(strings.ToLower(line), word) {
					t.Skip("this node cannot: " + line)
				}
			}
		}
		return fmt.Errorf("%w\n%s", err, events)
	})
	ns.Deploy(own, client)
	ns.answered("http://own-users/")
	if got := ns.readyColumn("own-users"); got != "2/2" {
		t.Errorf("READY is %s, want 2/2", got)
	}
}
