package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// confined starts a program as root with nothing but these capabilities, in a mount namespace where prepare may mount. Both are properties of the
// thread that starts it, which ends with the goroutine.
func confined(cmd *exec.Cmd, keep []uintptr, prepare func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := prepare(); err != nil {
				return err
			}
			for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
				if keep[0] == c || keep[1] == c {
					continue
				}
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
					return err
				}
			}
			return cmd.Start()
		}()
	}()
	return <-done
}

// TestTheAgentNeedsTwoCapabilitiesAndNoPrivilege runs the program as its DaemonSet would: root, everything dropped but SYS_ADMIN (to enter pods' network
// namespaces) and NET_ADMIN (to write rules there).
func TestTheAgentNeedsTwoCapabilitiesAndNoPrivilege(t *testing.T) {
	kit.Root(t)
	runtime, socket := newPretender(t)
	ns := nstest.New(t)
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runtime.add("job", netns, cri.PodSandboxState_SANDBOX_READY, map[string]string{redirect.Annotation: redirect.Default().Encode()})
	o := flags(t, socket)
	if err := os.WriteFile(filepath.Join(o.confDir, "10-pods.conf"), []byte(`{"name":"pods","cniVersion":"1.0.0","type":"ptp"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kit.Program(t, "weft-node"), "--node-name=n1", "--without-api", "--cni-binary="+o.binary, "--cni-bin-dir="+o.binDir, "--cni-conf-dir="+o.confDir,
		"--state-dir="+o.stateDir, "--agent-socket="+o.socket, "--cni-state-dir="+o.cniStateDir, "--runtime-endpoint="+socket, "--monitoring-address="+o.monitoring, "--inotify-dir="+o.inotifyDir)
	var log bytes.Buffer
	cmd.Stderr = &log
	keep := []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}
	if err := confined(cmd, keep, func() error { return unix.Mount(ns.Path, netns, "", unix.MS_BIND, "") }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("weft-node: %v\n%s", err, log.String())
		}
	}()
	readiness(t, o, http.StatusOK)
	kit.Within(t, 20*time.Second, func() string {
		b, err := redirect.Open(redirect.Auto)
		if err != nil {
			return err.Error()
		}
		var drift []string
		ns.Do(func() { drift, err = b.Verify(redirect.Default()) })
		return strings.Join(drift, "; ") + errorText(err)
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("CapEff:\t%016x", 1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_NET_ADMIN)
	if !strings.Contains(string(status), want) {
		t.Errorf("it has other capabilities than this test is about:\n%s", status)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			t.Log(line)
		}
	}
}
