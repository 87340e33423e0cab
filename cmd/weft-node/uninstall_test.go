package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/e2e/kit"
)

func TestUninstallationKeepsTryingAndSaysWhenItIsDone(t *testing.T) {
	_, socket := newPretender(t)
	o := flags(t, socket)
	path := filepath.Join(o.confDir, "10-pods.conflist")
	if err := os.WriteFile(path, []byte(primary), 0o644); err != nil {
		t.Fatal(err)
	}
	stop := start(t, o)
	readiness(t, o, http.StatusOK)
	stop()

	// A binary that cannot be removed: its name is a directory with something in it by now.
	binary := filepath.Join(o.binDir, "weft-cni")
	moved := o.binDir + ".moved"
	if err := os.Rename(o.binDir, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(binary, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- uninstallAndStay(ctx, o, quiet()) }()
	if body := readiness(t, o, http.StatusServiceUnavailable); body == "" {
		t.Error("it does not say why it is not ready")
	}
	kit.Within(t, 20e9, func() string {
		if _, body := get(o, "/readyz"); !strings.Contains(body, "undo binary of weft-cni") {
			return body
		}
		return ""
	})
	if text, err := os.ReadFile(path); err != nil || string(text) != primary {
		t.Errorf("what could be undone was not: %s %v", text, err)
	}
	if err := os.RemoveAll(o.binDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(moved, o.binDir); err != nil {
		t.Fatal(err)
	}
	readiness(t, o, http.StatusOK)
	if _, err := os.Stat(binary); !os.IsNotExist(err) {
		t.Errorf("the binary is still there: %v", err)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUninstallTakesTheAgentsArguments(t *testing.T) {
	_, socket := newPretender(t)
	o := flags(t, socket)
	cmd := newCommand()
	cmd.SetArgs([]string{"uninstall", "--cni-conf-dir=" + o.confDir, "--cni-bin-dir=" + o.binDir, "--state-dir=" + o.stateDir, "--node-name=n1", "--taint-after=1s", "--exclude-namespaces=a,b", "--own-conflist=00-weft.conflist"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Error(err)
	}
}
