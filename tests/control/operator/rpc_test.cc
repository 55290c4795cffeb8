// SPDX-License-Identifier: Apache-2.0
//
// The control protocol (docs/rpc.md): requests as text, the server over a real socket, the
// client's command line and tables.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "control/operator/request.h"
#include "control/operator/server.h"
#include "ctl/arguments.h"
#include "ctl/client.h"
#include "ctl/tables.h"

namespace sallyport::rpc {
namespace {

namespace json = boost::json;

TEST(RpcRequest, EveryNameIsUnderstood) {
    for (size_t i = 0; i < kShowNames.size(); ++i) {
        const Request request{static_cast<Show>(i)};
        std::string line = encode_request(request);
        ASSERT_EQ(line.back(), '\n');
        line.pop_back();
        const auto parsed = parse_request(line);
        ASSERT_TRUE(parsed) << line;
        EXPECT_EQ(*parsed, request);
    }
}

TEST(RpcRequest, WrongRequestsGetASentence) {
    struct Row {
        std::string_view line;
        bool close;
        std::string_view hint;
    };
    const Row rows[] = {
        {"", true, "not one line of JSON"},
        {"show status", true, "not one line of JSON"},
        {"{\"show\": \"status\"", true, "not one line of JSON"},
        {"{\"show\": \"status\"} x", true, "not one line of JSON"},
        {"\xff\xfe", true, "not one line of JSON"},
        {"{\"show\": \"\xff\"}", true, "not one line of JSON"},
        {"[[[[[[[[[[[[[[[[[[[[", true, "not one line of JSON"},
        {"7", false, "one member"},
        {"{}", false, "one member"},
        {"{\"show\": \"sa\", \"keys\": true}", false, "one member"},
        {"{\"show\": 7}", false, "show takes"},
        {"{\"show\": \"keys\"}", false, "unknown request 'keys': show takes status"},
        {"{\"show\": \"a\\u0000\\nb\"}", false, "'a??b'"},
    };
    for (const Row& row : rows) {
        const auto parsed = parse_request(row.line);
        ASSERT_FALSE(parsed) << row.line;
        EXPECT_EQ(parsed.error().close, row.close) << row.line;
        EXPECT_TRUE(parsed.error().text.contains(row.hint)) << parsed.error().text;
    }
}

TEST(RpcRequest, AnswersAreOneLineAndComeBack) {
    const std::string line = encode_result(json::array{1, "a\nb"});
    EXPECT_EQ(line.find('\n'), line.size() - 1);
    EXPECT_EQ(*parse_answer(line.substr(0, line.size() - 1)), json::value(json::array{1, "a\nb"}));
    const auto error = parse_answer(encode_error("no \"such\" thing"));
    ASSERT_FALSE(error);
    EXPECT_EQ(error.error(), "no \"such\" thing");
    EXPECT_FALSE(parse_answer("HTTP/1.1 400 Bad Request"));
    EXPECT_FALSE(parse_answer("{\"ok\": 1}"));
    EXPECT_FALSE(parse_answer("{\"ok\": true}"));
}

// A server on its own thread, as the daemon runs it.
class RpcServer : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "/sallyport-rpc-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        dir_ = name;
        path_ = dir_ / "run" / "control.sock";
        start();
    }
    void TearDown() override {
        stop();
        std::filesystem::remove_all(dir_);
    }
    void start(std::chrono::milliseconds silence = std::chrono::hours(1)) {
        context_ = std::make_unique<boost::asio::io_context>(1);
        auto server = Server::listen(
            *context_, path_,
            [this](const Request& request) -> std::expected<json::value, std::string> {
                if (request.show == Show::drops) return std::unexpected("no drops today");
                if (request.show == Show::sa) return json::string(big_answer_bytes_, 'x');
                return json::object{{"version", "test"}};
            },
            silence);
        ASSERT_TRUE(server) << server.error();
        server_ = std::make_unique<Server>(std::move(*server));
        thread_ = std::thread([this] {
            const auto work = boost::asio::make_work_guard(*context_);
            context_->run();
            server_.reset();
        });
    }
    void stop() {
        if (!thread_.joinable()) return;
        context_->stop();
        thread_.join();
    }

    int connect_client() {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
        const timeval patience{.tv_sec = 5, .tv_usec = 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        return fd;
    }
    static void send_text(int fd, std::string_view text) {
        while (!text.empty()) {
            const ssize_t sent = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
            if (sent <= 0) return;  // the server has closed: that is what some tests want
            text.remove_prefix(static_cast<size_t>(sent));
        }
    }
    // Up to a newline; empty at the end of the stream. A time out is a failure.
    static std::string read_line(int fd) {
        std::string line;
        char c = 0;
        while (true) {
            const ssize_t got = recv(fd, &c, 1, 0);
            EXPECT_FALSE(got < 0 && errno == EAGAIN) << "no answer";
            if (got <= 0 || c == '\n') return line;
            line += c;
        }
    }

    std::filesystem::path dir_;
    std::filesystem::path path_;
    size_t big_answer_bytes_ = 100;
    std::unique_ptr<boost::asio::io_context> context_;
    std::unique_ptr<Server> server_;
    std::thread thread_;
};

TEST_F(RpcServer, ClientGetsResultsAndErrors) {
    const auto result = ctl::ask(path_, {Show::status});
    ASSERT_TRUE(result) << result.error();
    EXPECT_EQ(result->at("version"), "test");
    const auto refused = ctl::ask(path_, {Show::drops});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error(), "no drops today");
}

TEST_F(RpcServer, OneConnectionSeveralRequestsInPieces) {
    const int fd = connect_client();
    send_text(fd, "{\"show\": \"sta");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    send_text(fd, "tus\"}\n{\"show\": \"nothing\"}\n{\"show\": \"drops\"}\n");
    EXPECT_TRUE(parse_answer(read_line(fd)));
    EXPECT_TRUE(parse_answer(read_line(fd)).error().contains("'nothing'"));
    EXPECT_EQ(parse_answer(read_line(fd)).error(), "no drops today");
    shutdown(fd, SHUT_WR);
    EXPECT_EQ(read_line(fd), "");
    close(fd);
}

TEST_F(RpcServer, GarbageGetsAnErrorAndTheDoor) {
    const int fd = connect_client();
    send_text(fd, "GET / HTTP/1.1\r\n{\"show\": \"status\"}\n");
    EXPECT_TRUE(parse_answer(read_line(fd)).error().contains("not one line of JSON"));
    EXPECT_EQ(read_line(fd), "");
    close(fd);
    EXPECT_TRUE(ctl::ask(path_, {Show::status}));
}

TEST_F(RpcServer, LineOfExactly64KiBIsReadLongerIsRefused) {
    const std::string request = "{\"show\": \"status\"}";
    const int fd = connect_client();
    send_text(fd, request + std::string(kRequestBytesMax - request.size(), ' ') + "\n");
    EXPECT_TRUE(parse_answer(read_line(fd)));
    send_text(fd, request + std::string(kRequestBytesMax - request.size() + 1, ' ') + "\n");
    EXPECT_TRUE(parse_answer(read_line(fd)).error().contains("65536"));
    close(fd);

    const int endless = connect_client();
    send_text(endless, std::string(kRequestBytesMax * 4, 'x'));
    EXPECT_TRUE(parse_answer(read_line(endless)).error().contains("65536"));
    EXPECT_EQ(read_line(endless), "");
    close(endless);
}

TEST_F(RpcServer, ClientThatDoesNotReadIsDisconnected) {
    big_answer_bytes_ = 200'000;
    const int fd = connect_client();
    for (int i = 0; i < 100; ++i) send_text(fd, "{\"show\": \"sa\"}\n");
    // 20 MB are asked for; far less comes before the end of the stream.
    size_t received = 0;
    char chunk[65536];
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    while (true) {
        const ssize_t got = recv(fd, chunk, sizeof chunk, 0);
        EXPECT_FALSE(got < 0 && errno == EAGAIN) << "still connected";
        if (got <= 0) break;
        received += static_cast<size_t>(got);
    }
    EXPECT_LT(received, 3'000'000u);
    close(fd);
    EXPECT_TRUE(ctl::ask(path_, {Show::status}));
}

TEST_F(RpcServer, LongAnswerReachesAClientThatReads) {
    big_answer_bytes_ = 3'000'000;
    const auto result = ctl::ask(path_, {Show::sa});
    ASSERT_TRUE(result) << result.error();
    EXPECT_EQ(result->as_string().size(), 3'000'000u);
}

TEST_F(RpcServer, SeventeenthClientIsToldToComeBack) {
    std::vector<int> clients;
    for (size_t i = 0; i < kClientsMax; ++i) {
        clients.push_back(connect_client());
        send_text(clients.back(), "{\"show\": \"status\"}\n");
        EXPECT_TRUE(parse_answer(read_line(clients.back())));
    }
    const auto refused = ctl::ask(path_, {Show::status});
    ASSERT_FALSE(refused);
    EXPECT_TRUE(refused.error().contains("too many clients")) << refused.error();
    close(clients.back());
    clients.pop_back();
    std::expected<json::value, std::string> served = std::unexpected("");
    for (int i = 0; i < 50 && !served; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        served = ctl::ask(path_, {Show::status});
    }
    EXPECT_TRUE(served);
    for (const int fd : clients) close(fd);
}

// As many as there are places: they say nothing, half a request, or do not read.
TEST_F(RpcServer, SilentClientsDoNotLockOthersOut) {
    stop();
    start(std::chrono::milliseconds(1));
    std::vector<int> clients;
    for (size_t i = 0; i < kClientsMax; ++i) {
        clients.push_back(connect_client());
        if (i % 3 == 1) send_text(clients.back(), "{\"show\": ");
        if (i % 3 == 2) send_text(clients.back(), "{\"show\": \"sa\"}\n");
    }
    // A thread that comes to run late has heard of them later, and finds them silent later.
    std::expected<json::value, std::string> served = std::unexpected("");
    for (size_t i = 0, tries = 0; i < 2 * kClientsMax && tries < 500; ++tries) {
        served = ctl::ask(path_, {Show::status});
        if (served) {
            ++i;
        } else {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
    }
    EXPECT_TRUE(served) << served.error();
    for (const int fd : clients) close(fd);
}

TEST_F(RpcServer, SocketFileIsForOwnerAndGroupAndGoesAtExit) {
    struct stat status{};
    ASSERT_EQ(stat(path_.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0660u);
    stop();
    EXPECT_FALSE(std::filesystem::exists(path_));
    const auto gone = ctl::ask(path_, {Show::status});
    ASSERT_FALSE(gone);
    EXPECT_TRUE(gone.error().contains("is sallyportd running?")) << gone.error();
}

TEST_F(RpcServer, LiveSocketIsRefusedStaleOneReplacedOtherFilesKept) {
    boost::asio::io_context context(1);
    const auto handler = [](const Request&) -> std::expected<json::value, std::string> {
        return json::value();
    };
    const auto second = Server::listen(context, path_, handler);
    ASSERT_FALSE(second);
    EXPECT_TRUE(second.error().contains("another daemon answers")) << second.error();
    stop();

    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);  // as after a kill: a name, nobody behind it
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    close(fd);
    EXPECT_TRUE(ctl::ask(path_, {Show::status}).error().contains("has ended"));
    EXPECT_TRUE(Server::listen(context, path_, handler));

    const auto file = dir_ / "file";
    fclose(fopen(file.c_str(), "w"));
    const auto not_a_socket = Server::listen(context, file, handler);
    ASSERT_FALSE(not_a_socket);
    EXPECT_TRUE(std::filesystem::exists(file));
}

// ---- the client's command line -----------------------------------------------------------------

using Words = std::vector<const char*>;

TEST(CtlArguments, EachHasItsPlace) {
    const auto plain = ctl::parse_arguments(Words{"sallyportctl", "show", "status"});
    ASSERT_TRUE(plain) << plain.error();
    EXPECT_EQ(plain->show, Show::status);
    EXPECT_EQ(plain->socket, "/run/sallyport/control.sock");
    EXPECT_FALSE(plain->as_json);
    EXPECT_EQ(plain->drop_rows, ctl::DropRows::occurred);
    EXPECT_EQ(plain->only_print, "");
    const auto all = ctl::parse_arguments(
        Words{"sallyportctl", "--socket", "/x", "show", "drops", "--all", "--json"});
    ASSERT_TRUE(all) << all.error();
    EXPECT_EQ(all->show, Show::drops);
    EXPECT_EQ(all->socket, "/x");
    EXPECT_TRUE(all->as_json);
    EXPECT_EQ(all->drop_rows, ctl::DropRows::all);
}

TEST(CtlArguments, UsageAndVersionWhereverTheyAreAskedFor) {
    for (const Words& words :
         {Words{"sallyportctl", "--help"}, Words{"sallyportctl", "show", "-h"},
          Words{"sallyportctl", "show", "--help"}, Words{"sallyportctl", "show", "sa", "--help"}}) {
        const auto parsed = ctl::parse_arguments(words);
        ASSERT_TRUE(parsed) << parsed.error();
        EXPECT_EQ(parsed->only_print, ctl::kUsage);
    }
    const auto version = ctl::parse_arguments(Words{"sallyportctl", "--version"});
    ASSERT_TRUE(version) << version.error();
    EXPECT_TRUE(version->only_print.starts_with("sallyportctl "));
    for (const std::string_view name : kShowNames) {
        EXPECT_TRUE(ctl::kUsage.contains("\n  " + std::string(name) + " ")) << name;
    }
}

TEST(CtlArguments, WrongOnesGetASentence) {
    const std::pair<Words, const char*> rows[] = {
        {{}, "nothing to do"},
        {{"sallyportctl", "--json"}, "nothing to do"},
        {{"sallyportctl", "show"}, "show what?"},
        {{"sallyportctl", "show", "keys"}, "cannot show 'keys'"},
        {{"sallyportctl", "show", "sa", "show"}, "unknown argument 'show'"},
        {{"sallyportctl", "--socket"}, "--socket needs a path"},
    };
    for (const auto& [words, says] : rows) {
        const auto parsed = ctl::parse_arguments(words);
        ASSERT_FALSE(parsed) << says;
        EXPECT_EQ(parsed.error(), says);
    }
}

// ---- tables ------------------------------------------------------------------------------------

TEST(CtlTables, DropsHideWhatDidNotOccurAndSaySo) {
    const json::value result = json::parse(R"([
        {"reason": "truncated", "count": 0, "where": {}, "help": "short"},
        {"reason": "unknown_spi", "count": 12, "where": {"port wan0": 9, "worker 1": 3},
         "help": "no SA"}])");
    EXPECT_EQ(ctl::format_table(Show::drops, result, ctl::DropRows::occurred),
              "REASON       COUNT  WHERE                      MEANING\n"
              "unknown_spi     12  port wan0: 9, worker 1: 3  no SA\n"
              "(1 reasons that did not occur are hidden: --all)\n");
    EXPECT_TRUE(ctl::format_table(Show::drops, result, ctl::DropRows::all).contains("truncated"));
}

TEST(CtlTables, RefusedSaSaysWhy) {
    const json::value result = json::parse(R"([
        {"name": "a", "direction": "outbound", "spi": "0x00001001", "state": "refused",
         "reason": "no number", "bytes": 1536, "drops": {"no_sa": 2}}])");
    const std::string text = ctl::format_table(Show::sa, result, ctl::DropRows::occurred);
    EXPECT_TRUE(text.contains("a: no number\n")) << text;
    EXPECT_TRUE(text.contains("1.5 KiB")) << text;
    EXPECT_TRUE(text.contains("no_sa=2")) << text;
}

TEST(CtlTables, StatusSaysWhatIsNotAsItShouldBeAndNothingElse) {
    json::value result = json::parse(R"({"sa_source": "xfrm", "not_published": "",
        "bypass_lapses": 0, "log_lines_lost": 0,
        "host_traffic": {"routes": 2, "refused": 0, "left_to_kernel": 0}})");
    const auto text = [&result] {
        return ctl::format_table(Show::status, result, ctl::DropRows::occurred);
    };
    EXPECT_TRUE(text().contains("own traffic         2 routes to workers\n")) << text();
    for (const char* title : {"DEGRADED", "BYPASS", "log "}) {
        EXPECT_FALSE(text().contains(title)) << text();
    }
    result.at("not_published") = "too many";
    result.at("bypass_lapses") = 3;
    result.at("log_lines_lost") = 4;
    result.at_pointer("/host_traffic/refused") = 5;
    result.at_pointer("/host_traffic/left_to_kernel") = 6;
    EXPECT_TRUE(text().contains("2 routes to workers, 6 left to the kernel, 5 blocked (IPv6)\n"))
        << text();
    EXPECT_TRUE(text().contains(": too many\n")) << text();
    EXPECT_TRUE(text().contains("BYPASS              left to the kernel 3 times, ")) << text();
    EXPECT_TRUE(text().contains("4 lines are lost\n")) << text();
}

TEST(CtlTables, AnswersOfAnotherVersionDoNotBreakAnything) {
    for (size_t i = 0; i < kShowNames.size(); ++i) {
        for (const char* text : {"null", "[]", "{}", "[1, null, []]", "[{\"drops\": 7}]"}) {
            EXPECT_NO_THROW(
                ctl::format_table(static_cast<Show>(i), json::parse(text), ctl::DropRows::all));
        }
    }
}

TEST(CtlTables, Bytes) {
    EXPECT_EQ(ctl::format_bytes(0), "0 B");
    EXPECT_EQ(ctl::format_bytes(1023), "1023 B");
    EXPECT_EQ(ctl::format_bytes(1024), "1.0 KiB");
    EXPECT_EQ(ctl::format_bytes(1024 * 1024 - 1), "1.0 MiB");
    EXPECT_EQ(ctl::format_bytes(~uint64_t{0}), "16.0 EiB");
}

TEST(CtlTables, JsonIsIndentedAndWhole) {
    const json::value value = json::parse(R"({"a": [1, 2], "b": [{"c": null}], "d": {}})");
    const std::string text = ctl::format_json(value);
    EXPECT_EQ(json::parse(text), value);
    EXPECT_EQ(
        text,
        "{\n  \"a\": [1,2],\n  \"b\": [\n    {\n      \"c\": null\n    }\n  ],\n  \"d\": {}\n}\n");
}

}  // namespace
}  // namespace sallyport::rpc
