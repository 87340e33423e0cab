package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-mesh/weft/redirect"
)

// pretender speaks CRI as containerd does, over a real socket, with the sandboxes that a test gives it.
type pretender struct {
	cri.UnimplementedRuntimeServiceServer
	mu     sync.Mutex
	list   []*cri.PodSandbox
	status map[string]*cri.PodSandboxStatusResponse
	asked  int // for a status
	runs   map[string][]cri.ContainerState
}

func newPretender(t *testing.T) (p *pretender, socket string) {
	t.Helper()
	p = &pretender{status: map[string]*cri.PodSandboxStatusResponse{}}
	socket = filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, p)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return p, socket
}

// add makes a sandbox with this network namespace; "" is the node's own.
func (p *pretender) add(id, netns string, state cri.PodSandboxState, annotations map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, &cri.PodSandbox{Id: id, State: state, Annotations: annotations, Metadata: &cri.PodSandboxMetadata{Namespace: "shop", Name: "pod-" + id, Uid: "uid-" + id}})
	r := &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: id, State: state, Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{}}}}}
	// An excerpt of containerd's answer.
	r.Info = map[string]string{"info": fmt.Sprintf(`{"pid":4711,"processStatus":"running","runtimeSpec":{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":%q}]}}}`, netns)}
	if netns == "" {
		r.Status.Linux.Namespaces.Options.Network = cri.NamespaceMode_NODE
		r.Info = map[string]string{"info": `{"pid":4711,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"}]}}}`}
	}
	p.status[id] = r
}

func (p *pretender) ListPodSandbox(_ context.Context, q *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out cri.ListPodSandboxResponse
	for _, s := range p.list {
		if q.Filter.GetState() == nil || q.Filter.State.State == s.State {
			out.Items = append(out.Items, s)
		}
	}
	return &out, nil
}

func (p *pretender) PodSandboxStatus(_ context.Context, q *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.Verbose {
		p.asked++
	}
	r, ok := p.status[q.PodSandboxId]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return r, nil
}

func (p *pretender) ListContainers(_ context.Context, q *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out cri.ListContainersResponse
	for id, states := range p.runs {
		for _, s := range states {
			if q.Filter.GetPodSandboxId() == id {
				out.Containers = append(out.Containers, &cri.Container{PodSandboxId: id, State: s})
			}
		}
	}
	return &out, nil
}

func TestAPodEndsWhenItsSandboxIsNotReadyOrNothingRunsInItAnyMore(t *testing.T) {
	const ready, running, exited = cri.PodSandboxState_SANDBOX_READY, cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED
	p, socket := newPretender(t)
	p.runs = map[string][]cri.ContainerState{"lives": {exited, running}, "other": {running}, "ends": {exited, exited}}
	for _, id := range []string{"lives", "begins", "ends"} {
		p.add(id, "/run/netns/"+id, ready, nil)
	}
	p.add("stopped", "/run/netns/stopped", cri.PodSandboxState_SANDBOX_NOTREADY, nil)
	r := &containerRuntime{endpoint: socket}
	defer r.Close()
	for id, want := range map[string]bool{"lives": false, "begins": false, "ends": true, "stopped": true, "gone": true} {
		if ending, err := r.Ending(t.Context(), id); err != nil || ending != want {
			t.Errorf("%s: ending %t, want %t (%v)", id, ending, want, err)
		}
	}
}

func TestOnlyReadySandboxesOfInjectedPodsWithTheirOwnNetworkAreLookedAfter(t *testing.T) {
	p, socket := newPretender(t)
	injected := map[string]string{redirect.Annotation: "spec"}
	p.add("cart", "/run/netns/cni-1", cri.PodSandboxState_SANDBOX_READY, injected)
	p.add("plain", "/run/netns/cni-2", cri.PodSandboxState_SANDBOX_READY, nil)
	p.add("host", "", cri.PodSandboxState_SANDBOX_READY, injected)
	p.add("ended", "/run/netns/cni-3", cri.PodSandboxState_SANDBOX_NOTREADY, injected)
	p.add("gone", "/run/netns/cni-4", cri.PodSandboxState_SANDBOX_READY, injected)
	delete(p.status, "gone")
	r := &containerRuntime{endpoint: socket}
	defer r.Close()
	for range 3 {
		list, err := r.Sandboxes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 1 || list[0].NetNS != "/run/netns/cni-1" || list[0].Name != "pod-cart" || list[0].UID != "uid-cart" || list[0].Redirect != "spec" {
			t.Fatalf("%+v", list)
		}
	}
	if want := 2 + 3; p.asked != want { // cart and host once, gone each time
		t.Errorf("%d questions for a status, want %d", p.asked, want)
	}
}

func TestARuntimeThatIsNotThereYetIsAnErrorAndNoMore(t *testing.T) {
	r := &containerRuntime{endpoint: filepath.Join(t.TempDir(), "none.sock")}
	defer r.Close()
	if _, err := r.Sandboxes(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestOnlyEventsOfSandboxesAskForALook(t *testing.T) {
	event := func(container, sandbox string) *cri.ContainerEventResponse {
		return &cri.ContainerEventResponse{ContainerId: container, PodSandboxStatus: &cri.PodSandboxStatus{Id: sandbox}}
	}
	for e, want := range map[*cri.ContainerEventResponse]bool{
		event("s1", "s1"):    true,
		event("c1", "s1"):    false,
		{ContainerId: "any"}: true, // a runtime that says less
	} {
		if got := ofSandbox(e); got != want {
			t.Errorf("%v: %v, want %v", e, got, want)
		}
	}
}
