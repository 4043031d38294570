package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// model plays a model provider, and an MCP server beside it: it answers each call by the credential that came with it, as Anthropic's
// Messages or OpenAI's Chat Completions stream it, or as the result of a tool.
func model(port string) error {
	// As process 1 of a container it gets no default action for a signal.
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-told
		os.Exit(0)
	}()
	return http.ListenAndServe(":"+port, http.HandlerFunc(answer))
}

func answer(to http.ResponseWriter, request *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(request.Body, 1<<20))
	credential := strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer ")
	if credential == "" {
		credential = request.Header.Get("X-Api-Key")
	}
	if strings.HasSuffix(request.URL.Path, "/mcp") {
		tool(to, body, credential)
		return
	}
	text, _ := json.Marshal("called with " + credential)
	to.Header().Set("Content-Type", "text/event-stream")
	switch {
	case strings.HasSuffix(request.URL.Path, "/chat/completions"):
		chunk := `data: {"id":"1","object":"chat.completion.chunk","model":"played","choices":[%s],"usage":%s}` + "\n\n"
		fmt.Fprintf(to, chunk, fmt.Sprintf(`{"index":0,"delta":{"role":"assistant","content":%s},"finish_reason":null}`, text), "null")
		fmt.Fprintf(to, chunk, `{"index":0,"delta":{},"finish_reason":"stop"}`, "null")
		fmt.Fprintf(to, chunk, "", `{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}`)
		fmt.Fprint(to, "data: [DONE]\n\n")
	case strings.HasSuffix(request.URL.Path, "/v1/messages"):
		for _, event := range []string{
			`{"type":"message_start","message":{"id":"1","type":"message","role":"assistant","model":"played","content":[],"stop_reason":null,"usage":{"input_tokens":11,"output_tokens":1}}}`,
			`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
			fmt.Sprintf(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}`, text),
			`{"type":"content_block_stop","index":0}`,
			`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":7}}`,
			`{"type":"message_stop"}`,
		} {
			var kind struct{ Type string }
			_ = json.Unmarshal([]byte(event), &kind)
			fmt.Fprintf(to, "event: %s\ndata: %s\n\n", kind.Type, event)
		}
	default:
		http.NotFound(to, request)
	}
}
