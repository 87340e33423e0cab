package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-mesh/weft/cni/node"
	"github.com/weft-mesh/weft/redirect"
)

// endpoints are where container runtimes listen.
var endpoints = []string{
	"/run/containerd/containerd.sock",
	"/run/crio/crio.sock",
	"/run/k3s/containerd/containerd.sock", // k3s and RKE2
}

// containerRuntime is node.Sandboxes over CRI. The pods' annotations come from the runtime as well (CRI: a sandbox's annotations are those
// of its configuration, unaltered), so pods are repaired while the API server is away.
type containerRuntime struct {
	endpoint string // "" for the first of endpoints that exists

	mu     sync.Mutex
	client cri.RuntimeServiceClient
	conn   *grpc.ClientConn
	netns  map[string]place // by sandbox ID, which is never used twice
}

// place is what a sandbox's status says about its network.
type place struct {
	path string
	host bool // the node's own network
}

const runtimeTimeout = 5 * time.Second

func (r *containerRuntime) Sandboxes(ctx context.Context) ([]node.Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.connect(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, runtimeTimeout)
	defer stop()
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	list, err := r.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	var out []node.Sandbox
	seen := map[string]place{}
	for _, s := range list.Items {
		text, injected := s.Annotations[redirect.Annotation]
		if !injected || s.State != cri.PodSandboxState_SANDBOX_READY {
			continue
		}
		at, known := r.netns[s.Id]
		if !known {
			if at, err = r.find(ctx, s.Id); status.Code(err) == codes.NotFound {
				continue // it has just ended
			} else if err != nil {
				return nil, fmt.Errorf("container runtime: status of the sandbox of pod %s/%s: %w", s.Metadata.GetNamespace(), s.Metadata.GetName(), err)
			}
		}
		if seen[s.Id] = at; !at.host {
			m := s.Metadata
			out = append(out, node.Sandbox{ID: s.Id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), Redirect: text, NetNS: at.path})
		}
	}
	r.netns = seen
	return out, nil
}

// Ending asks for the sandbox's state first. containerd stops a sandbox before it takes its network down. CRI-O does it after that (unverified here), but like
// every runtime it ends the containers first: a pod of the mesh has one that runs, its sidecar, for as long as it lives.
func (r *containerRuntime) Ending(ctx context.Context, id string) (bool, error) {
	client, err := r.service()
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithTimeout(ctx, runtimeTimeout)
	defer stop()
	s, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("container runtime: status of sandbox %s: %w", id, err)
	}
	if s.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_READY {
		return true, nil
	}
	list, err := client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return false, fmt.Errorf("container runtime: containers of sandbox %s: %w", id, err)
	}
	runs := func(c *cri.Container) bool { return c.State != cri.ContainerState_CONTAINER_EXITED }
	return len(list.Containers) > 0 && !slices.ContainsFunc(list.Containers, runs), nil
}

func (r *containerRuntime) service() (cri.RuntimeServiceClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.connect()
	return r.client, err
}

// connect is lazy: the runtime may start after us.
func (r *containerRuntime) connect() error {
	if r.client != nil {
		return nil
	}
	path := r.endpoint
	if path == "" {
		for _, e := range endpoints {
			if _, err := os.Stat(e); err == nil {
				path = e
				break
			}
		}
	}
	if path == "" {
		return fmt.Errorf("container runtime: none of %q exists; set --runtime-endpoint", endpoints)
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return fmt.Errorf("container runtime at %s: %w", path, err)
	}
	r.conn, r.client = conn, cri.NewRuntimeServiceClient(conn)
	return nil
}

// follow tells look whenever a sandbox comes or goes, where the runtime says so (CRI: GetContainerEvents), so that a pod which needs
// repair does not wait for the next listing. Elsewhere it returns at once.
//
// containerd 1.7 has one queue for all who listen: what we took from it, kubelet would miss. From 2.0 on everybody gets everything.
func (r *containerRuntime) follow(ctx context.Context, look chan<- struct{}, log *slog.Logger) {
	for {
		err := r.events(ctx, look)
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unimplemented {
			log.Info("the container runtime tells of no changes; its sandboxes are listed every two seconds", "reason", status.Convert(err).Message())
			return
		}
		log.Debug("the container runtime's events ended, asking again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (r *containerRuntime) events(ctx context.Context, look chan<- struct{}) error {
	client, err := r.service()
	if err != nil {
		return err
	}
	asked, stop := context.WithTimeout(ctx, runtimeTimeout)
	v, err := client.Version(asked, &cri.VersionRequest{})
	stop()
	if err != nil {
		return err
	}
	if v.RuntimeName == "containerd" && olderThan2(v.RuntimeVersion) {
		return status.Error(codes.Unimplemented, "containerd "+v.RuntimeVersion)
	}
	stream, err := client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		if ofSandbox(e) {
			wake(look)
		}
	}
}

// ofSandbox: of the 15 events of a pod's start, those of its containers tell nothing of its network.
func ofSandbox(e *cri.ContainerEventResponse) bool {
	sandbox := e.GetPodSandboxStatus().GetId()
	return sandbox == "" || sandbox == e.ContainerId
}

// olderThan2 reads "1.6.20~ds1" and "v2.4.2" alike. What is not a version counts as old.
func olderThan2(version string) bool {
	major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	n, err := strconv.Atoi(major)
	return err != nil || n < 2
}

func (r *containerRuntime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	return r.conn.Close()
}

// find asks for the verbose status. containerd and CRI-O both put the OCI spec of the sandbox there, whose network namespace has a path.
func (r *containerRuntime) find(ctx context.Context, id string) (place, error) {
	s, err := r.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return place{}, err
	}
	if s.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return place{host: true}, nil
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct {
					Type string `json:"type"`
					Path string `json:"path"`
				} `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil {
		return place{}, errors.Join(errors.New("its verbose information is not JSON"), err)
	}
	for _, n := range info.RuntimeSpec.Linux.Namespaces {
		if n.Type == "network" {
			return place{path: n.Path}, nil
		}
	}
	return place{}, nil
}
