//go:build linux

// Runpod runs a pod like the kubelet, through the CRI of a container runtime:
//
//	runpod SOCKET NAMESPACE POD UID CGROUP IMAGE NAME:BYTES:SCRIPT...
//
// Each container has a limit of BYTES of memory, 0 for none, and runs SCRIPT in /bin/busybox sh.
// It prints the names and ids of the containers. When the first one has ended, it prints why,
// waits for a line on stdin, and removes the pod.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 8 {
		log.Fatal("usage: runpod SOCKET NAMESPACE POD UID CGROUP IMAGE NAME:BYTES:SCRIPT...")
	}
	if err := run(context.Background(), os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) error {
	socket, namespace, pod, uid, cgroup, image := args[0], args[1], args[2], args[3], args[4], args[5]
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	runtime := cri.NewRuntimeServiceClient(conn)
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: pod, Namespace: namespace, Uid: uid},
		LogDirectory: fmt.Sprintf("/var/log/pods/%s_%s_%s", namespace, pod, uid),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: cgroup,
			// Without a network of its own it needs no CNI plugin.
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	}
	started, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return fmt.Errorf("run the sandbox: %w", err)
	}
	var first string
	for _, arg := range args[6:] {
		name, rest, _ := strings.Cut(arg, ":")
		limit, script, _ := strings.Cut(rest, ":")
		bytes, err := strconv.ParseInt(limit, 10, 64)
		if err != nil {
			return err
		}
		container, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: started.PodSandboxId, SandboxConfig: sandbox, Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: []string{"/bin/busybox", "sh", "-c", script},
			LogPath: name + "/0.log",
			Linux: &cri.LinuxContainerConfig{
				Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: bytes},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: sandbox.Linux.SecurityContext.NamespaceOptions},
			},
		}})
		if err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
		if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		fmt.Println(name, container.ContainerId)
		if first == "" {
			first = container.ContainerId
		}
	}
	for {
		r, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: first})
		if err != nil {
			return err
		}
		if r.Status.State == cri.ContainerState_CONTAINER_EXITED {
			fmt.Println(r.Status.Reason, r.Status.ExitCode)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: started.PodSandboxId})
	return err
}
