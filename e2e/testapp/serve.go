package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	dice "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The ports of every instance. They can be moved by HTTP_PORT and so on.
const (
	httpPort   = 8080 // HTTP/1.1, h2c, WebSocket
	http2Port  = 8081 // the same, for a Service port that declares HTTP/2
	grpcPort   = 9000 // grpc.health.v1.Health
	tcpPort    = 9001 // the client speaks first: lines are echoed as "VERSION line"
	bannerPort = 9002 // the server speaks first: "VERSION ready", then echo
	tlsPort    = 8443 // HTTP/1.1 behind a certificate of its own
)

// answer is the body of every HTTP response.
type answer struct {
	Pod     string              `json:"pod"`
	Version string              `json:"version"`
	Proto   string              `json:"proto"`
	Method  string              `json:"method"`
	Host    string              `json:"host"`
	Path    string              `json:"path"`
	Remote  string              `json:"remote"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body,omitempty"` // what arrived, unless it is long
	Bytes   int64               `json:"bytes,omitempty"`
}

type server struct {
	pod, version string
	failPercent  float64 // of requests that are answered failStatus
	failStatus   int
	delay        time.Duration
	delayPercent float64
	unhealthy    atomic.Bool
}

func serve() error {
	pod, _ := os.Hostname() // only shown
	s := &server{
		pod: pod, version: env("VERSION", "v1"),
		failPercent: number("FAIL_PERCENT", 0), failStatus: int(number("FAIL_STATUS", 503)),
		delayPercent: number("DELAY_PERCENT", 100),
	}
	var err error
	if s.delay, err = time.ParseDuration(env("DELAY", "0s")); err != nil {
		return fmt.Errorf("DELAY: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{Handler: s.routes(), Protocols: protocols, ReadHeaderTimeout: time.Minute}
	for _, address := range []string{port("HTTP_PORT", httpPort), port("HTTP2_PORT", http2Port)} {
		group.Go(func() error {
			if err := listen(address, web.Serve); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	group.Go(func() error {
		err := listen(port("TLS_PORT", tlsPort), func(l net.Listener) error {
			return web.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}))
		})
		if !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	rpc := grpc.NewServer(grpc.UnaryInterceptor(s.stampRPC), grpc.UnknownServiceHandler(s.talk))
	healthpb.RegisterHealthServer(rpc, health.NewServer())
	group.Go(func() error { return listen(port("GRPC_PORT", grpcPort), rpc.Serve) })
	for address, banner := range map[string]bool{port("TCP_PORT", tcpPort): false, port("BANNER_PORT", bannerPort): true} {
		group.Go(func() error {
			return listen(address, func(l net.Listener) error { return s.echo(ctx, l, banner) })
		})
	}
	// As every server in a cluster should: it takes no new connection and finishes the requests it has.
	const patience = 10 * time.Second
	group.Go(func() error {
		<-ctx.Done()
		defer time.AfterFunc(patience, rpc.Stop).Stop()
		rpc.GracefulStop()
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return web.Shutdown(grace)
	})
	fmt.Printf("testapp %s %s serving\n", s.version, s.pod)
	if err := group.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// routes: /status/N answers N, /delay/D answers after D, /ws echoes a WebSocket, /fail/P fails P
// percent of requests, /healthz follows POST /health?ok=false; everything else is an echo.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if s.unhealthy.Load() {
			http.Error(w, "unhealthy by request", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("POST /health", func(w http.ResponseWriter, r *http.Request) {
		s.unhealthy.Store(r.URL.Query().Get("ok") == "false")
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return // Accept has answered
		}
		defer conn.CloseNow()
		for {
			kind, msg, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if err := conn.Write(r.Context(), kind, append([]byte(s.version+" "), msg...)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.PathValue("code"))
		if err != nil || code < 200 || code > 599 {
			code = http.StatusBadRequest
		}
		s.answer(w, r, code)
	})
	mux.HandleFunc("/delay/{duration}", func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.PathValue("duration")); err == nil {
			pause(r.Context(), d)
		}
		s.answer(w, r, http.StatusOK)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if s.delay > 0 && dice.Float64()*100 < s.delayPercent {
			pause(r.Context(), s.delay)
		}
		if dice.Float64()*100 < s.failPercent {
			s.answer(w, r, s.failStatus)
			return
		}
		s.answer(w, r, http.StatusOK)
	})
	return mux
}

func (s *server) answer(w http.ResponseWriter, r *http.Request, status int) {
	const shown = 64 << 10
	body, _ := io.ReadAll(io.LimitReader(r.Body, shown)) // what arrived is what is shown
	rest, _ := io.Copy(io.Discard, r.Body)
	fmt.Printf("%s %s %s %d host=%s remote=%s request-id=%s\n", s.version, r.Method, r.URL.RequestURI(), status, r.Host, r.RemoteAddr, r.Header.Get("x-request-id"))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("x-app-version", s.version)
	w.Header().Set("x-internal-header", "secret of the app") // for header removal rules
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer{
		Pod: s.pod, Version: s.version, Proto: r.Proto, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(),
		Remote: r.RemoteAddr, Headers: r.Header, Body: string(body), Bytes: int64(len(body)) + rest,
	})
}

// stampRPC tells the caller who answered, in the response's metadata.
func (s *server) stampRPC(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-app-version", s.version, "x-app-pod", s.pod))
	fmt.Printf("%s grpc\n", s.version)
	return next(ctx, req)
}

// talk answers each message of a stream of any method with one of its own.
func (s *server) talk(_ any, stream grpc.ServerStream) error {
	if err := stream.SendHeader(metadata.Pairs("x-app-version", s.version, "x-app-pod", s.pod)); err != nil {
		return err
	}
	for {
		var word wrapperspb.StringValue
		if err := stream.RecvMsg(&word); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.String(s.version + " " + word.Value)); err != nil {
			return err
		}
	}
}

// selfSigned makes a certificate that nobody trusts.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"testapp"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * 365 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (s *server) echo(ctx context.Context, l net.Listener, banner bool) error {
	go func() { <-ctx.Done(); l.Close() }()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if banner {
				fmt.Fprintf(conn, "%s ready\n", s.version)
			}
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				fmt.Fprintf(conn, "%s %s\n", s.version, lines.Text())
			}
		}()
	}
}

// hold keeps the container alive without serving anything: a client pod.
func hold() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	<-ctx.Done()
	return nil
}

func listen(address string, serve func(net.Listener) error) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return serve(l)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func number(name string, otherwise float64) float64 {
	if v, err := strconv.ParseFloat(strings.TrimSuffix(os.Getenv(name), "%"), 64); err == nil {
		return v
	}
	return otherwise
}

func port(name string, otherwise int) string {
	return ":" + strconv.Itoa(int(number(name, float64(otherwise))))
}
