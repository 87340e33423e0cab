package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/sandbox/pod"
)

// TestMain lets the test binary be what a sandbox starts: the weft command (its
// daemon, "enter"), and a small program for pods.
func TestMain(m *testing.M) {
	pod.Init()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "sandbox":
			main()
			return
		case "app":
			app(os.Args[2:])
			return
		}
	}
	os.Exit(m.Run())
}

// app is the program in the tests' pods: it serves its host name, resolves names, or fetches.
func app(args []string) {
	switch args[0] {
	case "serve":
		host, err := os.Hostname()
		if err != nil {
			panic(err)
		}
		fmt.Println("serving as", host)
		panic(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, host) })))
	case "resolve":
		ips, err := net.LookupHost(args[1])
		fmt.Println(strings.Join(ips, " "), err)
	case "get":
		c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		n, err := strconv.Atoi(args[2])
		if err != nil {
			panic(err)
		}
		for range n {
			resp, err := c.Get(args[1])
			if err != nil {
				fmt.Println("error:", err)
				os.Exit(3)
			}
			b, err := io.ReadAll(resp.Body)
			fmt.Println(string(b), err)
			resp.Body.Close()
		}
	case "upper":
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			panic(err)
		}
		fmt.Print(strings.ToUpper(string(b)))
	case "fail":
		fmt.Fprintln(os.Stderr, "as told")
		os.Exit(7)
	}
}

const testPods = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: example.com/app:1
        args: [app, serve]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec:
  selector: {app: web}
  clusterIP: None
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
`

// cli runs weft commands against one state directory.
type cli struct {
	*testing.T
	state string
	plain []string // flags of "up" for a sandbox without a mesh
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	kit.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: its path would be too long for a socket.
	state, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	c := &cli{T: t, state: state, plain: []string{"--without-mesh", "--without-cni", "--cni-bin-dir", kit.CNIPlugins(t), "--image", "example.com/app=" + self}}
	t.Cleanup(func() {
		if out, err := c.try("", "down", "--all"); err != nil {
			t.Errorf("down --all: %v\n%s", err, out)
		}
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *cli) command(stdin string, out io.Writer, args ...string) func(context.Context) error {
	cmd := newWeft()
	cmd.SetArgs(append([]string{"sandbox", "--state-dir", c.state}, args...))
	cmd.SetOut(out)
	cmd.SetErr(out)
	cmd.SetIn(strings.NewReader(stdin))
	return cmd.ExecuteContext
}

func (c *cli) try(stdin string, args ...string) (string, error) {
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	err := c.command(stdin, &out, args...)(ctx)
	return out.String(), err
}

func (c *cli) weft(args ...string) string {
	c.Helper()
	out, err := c.try("", args...)
	if err != nil {
		c.Fatalf("weft sandbox %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cli) applied(manifest string) {
	c.Helper()
	if out, err := c.try(manifest, "apply", "-f", "-"); err != nil {
		c.Fatalf("apply: %v\n%s", err, out)
	}
}

func (c *cli) until(what string, ok func() bool) {
	c.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			all, _ := c.try("", "get", "all", "-A", "-o", "wide")
			events, _ := c.try("", "get", "events", "-A")
			c.Fatalf("not seen: %s\n%s\n%s", what, all, events)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestPlainPodsBehaveAsUnderKubectl(t *testing.T) {
	c := newCLI(t)
	up := c.weft(append([]string{"up"}, c.plain...)...)
	for _, want := range []string{"node: network namespace", "ready after", "Try next:"} {
		if !strings.Contains(up, want) {
			t.Errorf("up does not say %q:\n%s", want, up)
		}
	}
	c.applied(testPods)
	if out := c.weft("rollout", "status", "deploy/web", "--timeout=20s"); !strings.Contains(out, `deployment "web" successfully rolled out`) {
		t.Errorf("rollout status: %s", out)
	}

	t.Run("names resolve in pods and on the node", func(t *testing.T) {
		vip := strings.Fields(c.weft("get", "svc", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"))
		for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local"} {
			for _, line := range []string{
				c.weft("exec", "deploy/web", "--", "/usr/local/bin/"+self(t), "app", "resolve", name),
				c.weft("node", "--", selfPath(t), "app", "resolve", name),
			} {
				for _, ip := range vip {
					if !strings.Contains(line, ip) {
						t.Errorf("%s is %s, want %v", name, strings.TrimSpace(line), vip)
					}
				}
			}
		}
		pods := strings.Fields(c.weft("get", "pods", "-o", "jsonpath={.items[*].status.podIP}"))
		each := c.weft("exec", "deploy/web", "--", "/usr/local/bin/"+self(t), "app", "resolve", "each")
		for _, ip := range pods {
			if !strings.Contains(each, ip) {
				t.Errorf("the headless service is %s, want the pods %v", each, pods)
			}
		}
	})

	t.Run("a service spreads over its pods, for pods and for the node, on IPv4 and IPv6", func(t *testing.T) {
		v6 := strings.Fields(c.weft("get", "svc", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"))[1]
		for who, out := range map[string]string{
			"pod":       c.weft("exec", "deploy/web", "--", "/usr/local/bin/"+self(t), "app", "get", "http://web/", "30"),
			"node":      c.weft("node", "--", selfPath(t), "app", "get", "http://web.default/", "30"),
			"node IPv6": c.weft("node", "--", selfPath(t), "app", "get", "http://["+v6+"]/", "30"),
		} {
			seen := map[string]bool{}
			for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
				seen[l] = true
			}
			if len(seen) != 2 {
				t.Errorf("%s: 30 requests were answered by %v, want both pods", who, seen)
			}
		}
		if out, err := c.try("", "node", "--", selfPath(t), "app", "get", "http://nobody.default/", "1"); !strings.Contains(out, "connection refused") {
			t.Errorf("a service without pods: %s %v, want connection refused", out, err)
		}
	})

	t.Run("exec passes input, output and status", func(t *testing.T) {
		out, err := c.try("hello", "exec", "-i", "deploy/web", "--", "/usr/local/bin/"+self(t), "app", "upper")
		if err != nil || out != "HELLO" {
			t.Errorf("%q %v", out, err)
		}
		out, err = c.try("", "exec", "deploy/web", "--", "/usr/local/bin/"+self(t), "app", "fail")
		var status exitStatus
		if !errors.As(err, &status) || status != 7 || !strings.Contains(out, "as told") {
			t.Errorf("%q %v, want status 7", out, err)
		}
		if out, err := c.try("", "exec", "deploy/web", "-c", "nope", "--", "true"); err == nil || !strings.Contains(err.Error(), "it has: app") {
			t.Errorf("a container that is not there: %s %v", out, err)
		}
	})

	t.Run("logs", func(t *testing.T) {
		name := strings.Fields(c.weft("get", "pods", "-o", "jsonpath={.items[*].metadata.name}"))[0]
		if out := c.weft("logs", name, "--tail", "1"); out != "serving as "+name+"\n" {
			t.Errorf("logs: %q", out)
		}
		if out := c.weft("logs", "-l", "app=web", "--prefix", "--all-containers"); strings.Count(out, "[pod/web-") != 2 || !strings.Contains(out, "/app] serving as ") {
			t.Errorf("logs of both: %q", out)
		}
	})

	t.Run("port-forward", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- c.command("", w, "port-forward", "svc/web", ":80")(ctx) }()
		var addr string
		var remote int
		if _, err := fmt.Fscanf(r, "Forwarding from %s -> %d\n", &addr, &remote); err != nil || remote != 8080 {
			t.Fatalf("forwarding from %s to %d: %v", addr, remote, err)
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		resp, err := http.Get("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.HasPrefix(string(b), "web-") {
			t.Errorf("through the forward: %q %v", b, err)
		}
		cancel()
		w.Close()
		if err := <-done; err != nil {
			t.Errorf("port-forward ended with %v", err)
		}
	})

	t.Run("a relabelled pod leaves the service", func(t *testing.T) {
		victim := strings.Fields(c.weft("get", "pods", "-o", "jsonpath={.items[*].metadata.name}"))[0]
		if _, err := c.try("", "label", "pod", victim, "app=ghost"); err == nil || !strings.Contains(err.Error(), "--overwrite is false") {
			t.Errorf("label without --overwrite: %v", err)
		}
		c.weft("label", "pod", victim, "app=ghost", "--overwrite")
		ip := c.weft("get", "pod", victim, "-o", "jsonpath={.status.podIP}")
		c.until("the pod out of the endpoints", func() bool { return !strings.Contains(c.weft("get", "ep", "-o", "yaml"), "- "+ip+"\n") })
		c.weft("rollout", "status", "deploy/web", "--timeout=20s")
		if out := c.weft("node", "--", selfPath(t), "app", "get", "http://web.default/", "30"); strings.Contains(out, victim) {
			t.Errorf("the relabelled pod still answers:\n%s", out)
		}
		c.weft("delete", "pod", victim, "--now")
	})

	t.Run("scale, restart, wait, delete", func(t *testing.T) {
		c.weft("wait", "--timeout=20s")
		before := c.weft("get", "pods", "-o", "name")
		c.weft("scale", "deploy/web", "--replicas=1")
		c.weft("wait", "--for=jsonpath={.status.replicas}=1", "deploy/web")
		c.weft("rollout", "restart", "deploy", "web")
		c.weft("rollout", "status", "deploy/web", "--timeout=20s")
		c.until("one pod", func() bool { return strings.Count(c.weft("get", "pods", "-o", "name"), "\n") == 1 })
		if after := c.weft("get", "pods", "-o", "name"); strings.Contains(before, after) {
			t.Errorf("the pod is still %s after a restart", after)
		}
		c.weft("delete", "deploy", "web")
		c.weft("wait", "--for=delete", "pods", "--all")
		c.until("no pods", func() bool { return strings.Contains(c.weft("get", "pods"), "No resources found") })
	})

	pid := c.weft("status")
	if !strings.Contains(pid, "Cluster DNS: 10.96.0.10") {
		t.Errorf("status: %s", pid)
	}
	c.weft("down")
	c.nothingLeft()
}

// nothingLeft checks what a sandbox could leave on the machine.
func (c *cli) nothingLeft() {
	c.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.Fatal(err)
	}
	if strings.Contains(string(mounts), c.state) {
		c.Errorf("mounts are left below %s", c.state)
	}
	entries, err := os.ReadDir(c.state)
	if err != nil {
		c.Fatal(err)
	}
	for _, e := range entries {
		c.Errorf("left in the state directory: %s", e.Name())
	}
	// A daemon that was left alone removes its files first and ends then.
	c.until("the end of the sandbox's processes: "+strings.Join(c.processes(), "; "), func() bool { return len(c.processes()) == 0 })
}

// processes are those whose command line names the state directory.
func (c *cli) processes() (out []string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), c.state) {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func selfPath(t *testing.T) string {
	t.Helper()
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// self is the name of the program in a pod: that of the file its image is mapped to.
func self(t *testing.T) string { return filepath.Base(selfPath(t)) }

func TestDownCleansUpAfterAKilledDaemon(t *testing.T) {
	c := newCLI(t)
	c.weft(append([]string{"up"}, c.plain...)...)
	c.applied(testPods)
	c.weft("rollout", "status", "deploy/web", "--timeout=20s")
	b, err := os.ReadFile(filepath.Join(c.state, "default", "daemon.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until("verbs saying that it died", func() bool {
		_, err := c.try("", "get", "pods")
		return err != nil && strings.Contains(err.Error(), `"weft sandbox down" removes what it left`)
	})
	if out := c.weft("down"); !strings.Contains(out, "is gone") {
		t.Errorf("down: %s", out)
	}
	c.nothingLeft()
	// And the name can be used again at once, even without down.
	c.weft(append([]string{"up"}, c.plain...)...)
}

func TestUpAfterACrashRemovesWhatWasLeft(t *testing.T) {
	c := newCLI(t)
	c.weft(append([]string{"up"}, c.plain...)...)
	b, err := os.ReadFile(filepath.Join(c.state, "default", "daemon.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until("the daemon's end", func() bool { _, err := c.try("", "status"); return err != nil })
	if out := c.weft(append([]string{"up"}, c.plain...)...); !strings.Contains(out, "removed what a former run left") {
		t.Errorf("up: %s", out)
	}
	if _, err := c.try("", append([]string{"up"}, c.plain...)...); err == nil || !strings.Contains(err.Error(), `the sandbox "default" is running already`) {
		t.Errorf("up of a name that is taken: %v", err)
	}
}

func TestRunPassesTheStatusOnAndLeavesNothing(t *testing.T) {
	c := newCLI(t)
	file := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(file, []byte(testPods), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"run", "-f", file}, c.plain...)
	out, err := c.try("", append(args, "--", selfPath(t), "app", "get", "http://web/", "1")...)
	if err != nil || !strings.Contains(out, "\nweb-") || !strings.Contains(out, "all pods Ready") {
		t.Errorf("run: %v\n%s", err, out)
	}
	c.nothingLeft()
	var status exitStatus
	if out, err := c.try("", append(args, "-q", "--", selfPath(t), "app", "fail")...); !errors.As(err, &status) || status != 7 || out != "as told\n" {
		t.Errorf("run of a command that fails: %q %v, want its status 7", out, err)
	}
	c.nothingLeft()
	inject := append([]string{"run", "-q", "--inject", "-n", "shop"}, c.plain...)
	if out, err := c.try("", append(inject, "--", selfPath(t), "sandbox", "get", "ns", "shop", "--show-labels")...); err != nil || !strings.Contains(out, "istio-injection=enabled") {
		t.Errorf("run --inject: %v\n%s", err, out)
	}
	broken := append([]string{"run", "-q", "-f", "-", "--timeout", "3s"}, c.plain...)
	if _, err := c.try(strings.Replace(testPods, "[app, serve]", "[app, fail]", 1), append(broken, "--", "true")...); err == nil || !strings.Contains(err.Error(), "not everything got Ready in time") {
		t.Errorf("run with pods that do not start: %v", err)
	}
	c.nothingLeft()
}

// child starts a weft command as a process of its own.
func (c *cli) child(args ...string) *exec.Cmd {
	c.Helper()
	cmd := exec.Command(selfPath(c.T), append([]string{"sandbox", "--state-dir", c.state}, args...)...)
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	return cmd
}

func (c *cli) sandboxes() int {
	entries, err := os.ReadDir(c.state)
	if err != nil {
		c.Fatal(err)
	}
	return len(entries)
}

func TestARunThatIsInterruptedOrKilledTakesItsSandboxAlong(t *testing.T) {
	c := newCLI(t)
	for name, sig := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "the terminal's end": syscall.SIGHUP, "kill -9": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			if sig == syscall.SIGHUP && signal.Ignored(sig) {
				t.Skip("under nohup the terminal's end is no reason to stop")
			}
			mark := filepath.Join(t.TempDir(), "running")
			cmd := c.child(append(append([]string{"run", "-q"}, c.plain...), "--", "sh", "-c", "echo > "+mark+"; exec sleep 1000")...)
			c.until("the command", func() bool { _, err := os.Stat(mark); return err == nil })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it ended with status 0")
			}
			c.until("the sandbox gone", func() bool { return c.sandboxes() == 0 })
			c.nothingLeft()
		})
	}
}

func TestWhatAMachineLacksIsSaidClearly(t *testing.T) {
	c := newCLI(t)
	for name, v := range map[string]struct {
		args []string
		want string
	}{
		"plugins":  {[]string{"up", "--without-mesh", "--cni-bin-dir", "/nowhere"}, "CNI plugin ptp, host-local, loopback, weft-cni is not in /nowhere"},
		"program":  {append([]string{"up", "--image", "x=/nowhere"}, c.plain...), "--image x=/nowhere: no such program"},
		"image":    {append([]string{"up", "--image", "x"}, c.plain...), "write NAME=PATH"},
		"name":     {[]string{"--name", "No Name", "up"}, `"No Name" is not a name for a sandbox`},
		"family":   {append([]string{"up", "--ip-family", "ipv5"}, c.plain...), "use ipv4, ipv6 or dual"},
		"setting":  {append([]string{"up", "--set", "nope=1"}, c.plain...), "nope is not a field of MeshConfig"},
		"long":     {append([]string{"--state-dir", "/tmp/" + strings.Repeat("x", 100), "up"}, c.plain...), "too long for a unix socket"},
		"no such":  {[]string{"get", "pods"}, `"default" is not running; start it with "weft sandbox up"`},
		"file":     {[]string{"apply", "-f", "/nowhere.yaml"}, "-f /nowhere.yaml: no such file or directory"},
		"download": {[]string{"apply", "-f", "https://example.com/x.yaml"}, "manifests are not downloaded"},
		"type":     {[]string{"get", "widgets"}, `no resource type "widgets"`},
		"typo":     {[]string{"get", "deploymnets"}, "did you mean deployments?"},
		"verb":     {[]string{"upp"}, `"upp" is no verb of "weft sandbox": did you mean up?`},
		"rollout":  {[]string{"rollout", "undo", "deploy/x"}, `"weft sandbox rollout --help" lists them`},
		"bool":     {append([]string{"up", "--set", "enableAutoMtls=maybe"}, c.plain...), "--set enableAutoMtls=maybe: not what MeshConfig has there"},
	} {
		if _, err := c.try("", v.args...); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: %v, want %q", name, err, v.want)
		}
	}
	if n := c.sandboxes(); n != 0 {
		t.Errorf("%d state directories are left", n)
	}
	// As an ordinary user, who cannot even read the test binary's directory: a copy.
	binary, err := os.ReadFile(selfPath(t))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(c.state, "weft-copy")
	if err := os.WriteFile(copied, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.state, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "sandbox", "up")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "run it as root") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
}

func TestTwoUpsAtOnceDoNotRemoveEachOthersSandbox(t *testing.T) {
	c := newCLI(t)
	ends := make(chan error)
	for range 4 {
		go func() {
			_, err := c.try("", append([]string{"up"}, c.plain...)...)
			ends <- err
		}()
	}
	ok := 0
	for range 4 {
		switch err := <-ends; {
		case err == nil:
			ok++
		case !strings.Contains(err.Error(), "is running already") && !strings.Contains(err.Error(), "another command is bringing the sandbox"):
			t.Errorf("up: %v", err)
		}
	}
	if ok != 1 {
		t.Errorf("%d of 4 ups brought it up", ok)
	}
	c.weft("get", "pods")
	c.weft("down")
	c.nothingLeft()
}

func TestADirectoryGivesItsOwnFilesOnly(t *testing.T) {
	c := newCLI(t)
	c.weft(append([]string{"up"}, c.plain...)...)
	dir := t.TempDir()
	for file, name := range map[string]string{"a.yaml": "own", "below/b.yaml": "below", "README.md": "no"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n"
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := c.weft("apply", "-f", dir); out != "configmap/own created\n" {
		t.Errorf("apply -f: %s", out)
	}
	if out := c.weft("apply", "-R", "-f", dir); out != "configmap/own unchanged\nconfigmap/below created\n" {
		t.Errorf("apply -R -f: %s", out)
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.try("", "apply", "-f", dir); err == nil || !strings.Contains(err.Error(), "-R looks into the directories below") {
		t.Errorf("a directory with files only below: %v", err)
	}
}

func TestAnUnmappedImageSaysHowToMapIt(t *testing.T) {
	c := newCLI(t)
	c.weft(append([]string{"up"}, c.plain...)...)
	c.applied("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: \"nginx:1\"}]}\n")
	c.until("the way out", func() bool {
		return strings.Contains(c.weft("describe", "pod", "p"), "--image nginx")
	})
	if out := c.weft("get", "pod", "p"); !strings.Contains(out, "0/1") || !strings.Contains(out, "Image") {
		t.Errorf("get: %s", out)
	}
	if _, err := c.try("", "image", "nginx=/nowhere"); err == nil || !strings.Contains(err.Error(), "/nowhere is not the absolute path of a program") {
		t.Errorf("image: %v", err)
	}
	c.weft("image", "nginx=/bin/true")
	if out := c.weft("image"); !strings.Contains(out, "nginx") || !strings.Contains(out, "example.com/app") {
		t.Errorf("the images: %s", out)
	}
	c.until("the container run", func() bool {
		return !strings.Contains(c.weft("get", "pod", "p"), "ImageNotMapped")
	})
}

func TestWatchShowsEachChange(t *testing.T) {
	c := newCLI(t)
	c.weft(append([]string{"up"}, c.plain...)...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- c.command("", w, "get", "cm", "-w", "-l", "team=a")(ctx) }()
	seen := make(chan string, 16)
	go func() {
		var word, n, age string
		for {
			if _, err := fmt.Fscanln(r, &word, &n, &age); err != nil {
				return
			}
			seen <- word + " " + n
		}
	}()
	for _, step := range []struct {
		data string
		want []string
	}{
		{"{a: x}", []string{"NAME DATA", "mine 1"}},
		{"{a: x, b: z}", []string{"mine 2"}},
	} {
		c.applied("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, labels: {team: a}}\ndata: " + step.data + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n")
		for _, want := range step.want {
			select {
			case got := <-seen:
				if got != want {
					t.Errorf("line %q, want %q", got, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no line %q", want)
			}
		}
	}
	cancel()
	w.Close()
	if err := <-done; err != nil {
		t.Errorf("the watch ended with %v", err)
	}
}
