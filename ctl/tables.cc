// SPDX-License-Identifier: Apache-2.0
#include "ctl/tables.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstdio>
#include <string_view>
#include <vector>

namespace sallyport::ctl {

namespace json = boost::json;

namespace {

constexpr std::string_view kMissing = "-";

std::string_view view(const json::string& text) {
    return {text.data(), text.size()};
}

std::string text_of(const json::value& value) {
    switch (value.kind()) {
        case json::kind::null:
            return std::string(kMissing);
        case json::kind::string:
            return std::string(view(value.get_string()));
        case json::kind::bool_:
            return value.get_bool() ? "yes" : "no";
        case json::kind::array: {
            std::string out;
            for (const json::value& element : value.get_array()) {
                out += (out.empty() ? "" : " ") + text_of(element);
            }
            return out.empty() ? std::string(kMissing) : out;
        }
        default:
            return json::serialize(value);
    }
}

// A member by its path, such as "inbound.frames".
const json::value* find(const json::value& value, std::string_view path) {
    const json::value* at = &value;
    while (!path.empty()) {
        const size_t dot = std::min(path.find('.'), path.size());
        const std::string_view name = path.substr(0, dot);
        path.remove_prefix(std::min(dot + 1, path.size()));
        const json::object* object = at->if_object();
        at = object == nullptr ? nullptr
                               : object->if_contains(json::string_view(name.data(), name.size()));
        if (at == nullptr) return nullptr;
    }
    return at;
}

std::string get(const json::value& value, std::string_view path) {
    const json::value* found = find(value, path);
    return found == nullptr ? std::string(kMissing) : text_of(*found);
}

uint64_t get_number(const json::value& value, std::string_view path) {
    const json::value* found = find(value, path);
    if (found == nullptr) return 0;
    json::error_code error;
    const auto number = found->to_number<uint64_t>(error);
    return error ? 0 : number;
}

std::string get_bytes(const json::value& value, std::string_view path) {
    return find(value, path) == nullptr ? std::string(kMissing)
                                        : format_bytes(get_number(value, path));
}

enum class Align : uint8_t { left, right };

struct Column {
    std::string_view title;
    Align align = Align::left;
};

class Table {
  public:
    explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
    [[nodiscard]] bool empty() const { return rows_.empty(); }

    [[nodiscard]] std::string to_string() const {
        std::vector<size_t> widths;
        for (const Column& column : columns_) widths.push_back(column.title.size());
        for (const auto& row : rows_) {
            for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
        }
        std::vector<std::string> titles;
        for (const Column& column : columns_) titles.emplace_back(column.title);
        std::string out = line(titles, widths);
        for (const auto& row : rows_) out += line(row, widths);
        return out;
    }

  private:
    [[nodiscard]] std::string line(const std::vector<std::string>& cells,
                                   const std::vector<size_t>& widths) const {
        std::string out;
        for (size_t i = 0; i < cells.size(); ++i) {
            const std::string padding(widths[i] - cells[i].size(), ' ');
            if (i > 0) out += "  ";
            out += columns_[i].align == Align::right ? padding + cells[i] : cells[i] + padding;
        }
        out.erase(out.find_last_not_of(' ') + 1);
        return out + "\n";
    }

    std::vector<Column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

const json::array& rows_of(const json::value& result) {
    static const json::array kNone;
    const json::array* rows = result.if_array();
    return rows == nullptr ? kNone : *rows;
}

std::string format_duration(uint64_t seconds) {
    const uint64_t days = seconds / 86400;
    char text[64];
    std::snprintf(text, sizeof text, "%02u:%02u:%02u", static_cast<unsigned>(seconds / 3600 % 24),
                  static_cast<unsigned>(seconds / 60 % 60), static_cast<unsigned>(seconds % 60));
    return days == 0 ? text : std::to_string(days) + " d " + text;
}

// How the gateway's own packets come to workers, and how many destinations they do not come to.
std::string own_traffic(const json::value& result) {
    std::string out = get(result, "host_traffic.routes") + " routes to workers";
    for (const auto& [name, says] : {std::pair{"left_to_kernel", " left to the kernel"},
                                     std::pair{"refused", " blocked (IPv6)"}}) {
        const uint64_t count = get_number(result, std::string("host_traffic.") + name);
        if (count > 0) out += ", " + std::to_string(count) + says;
    }
    return out;
}

std::string format_status(const json::value& result) {
    const auto reasoned = [&](std::string_view name) {
        return get(result, name) + " (" + get(result, std::string(name) + "_reason") + ")";
    };
    const bool follows_xfrm = get(result, "sa_source") == "xfrm";
    const std::vector<std::pair<std::string_view, std::string>> lines = {
        {"version", get(result, "version")},
        {"pid", get(result, "pid")},
        {"up", format_duration(get_number(result, "uptime_s"))},
        {"config", get(result, "config")},
        {"egress", get(result, "egress")},
        {"SA lookup", reasoned("sa_lookup")},
        // Where SAs come from xfrm, there is nothing of ours to register.
        follows_xfrm
            ? std::pair<std::string_view, std::string>{"SAs come from", "the kernel's xfrm"}
            : std::pair<std::string_view, std::string>{"xfrm registration",
                                                       reasoned("xfrm_registration")},
        {"crypto", get(result, "crypto")},
        {"workers", get(result, "workers")},
        {"policies", get(result, "policies")},
        {"SAs", get(result, "sas") + (follows_xfrm ? " in xfrm, " + get(result, "sas_with_kernel") +
                                                         " of them with the kernel"
                                                   : "")},
        {"own traffic", follows_xfrm ? own_traffic(result) : "by routes set by hand"},
        {"frames",
         get(result, "frames.total") + " = " + get(result, "frames.pool") + " in pool + " +
             get(result, "frames.in_kernel") + " in kernel rings + " +
             get(result, "frames.in_workers") + " in workers" +
             (get(result, "frames.hugepages") == "yes" ? ", on hugepages" : ", without hugepages")},
    };
    std::string out;
    for (const auto& [name, text] : lines) {
        out += std::string(name) + std::string(20 - name.size(), ' ') + text + "\n";
    }
    const json::value* not_published = find(result, "not_published");
    if (not_published != nullptr && *not_published != json::value("")) {
        out += "DEGRADED            earlier policies are in force than xfrm has: " +
               text_of(*not_published) + "\n";
    }
    if (const json::value* degraded = find(result, "degraded");
        degraded != nullptr && degraded->is_array()) {
        for (const json::value& sentence : degraded->get_array()) {
            out += "DEGRADED            " + text_of(sentence) + "\n";
        }
    }
    if (get_number(result, "bypass_lapses") > 0) {
        out += "BYPASS              left to the kernel " + get(result, "bypass_lapses") +
               " times, because sallyportd did not run for more than a second\n";
    }
    if (get_number(result, "log_lines_lost") > 0) {
        out += "log                 its reader stood still: " + get(result, "log_lines_lost") +
               " lines are lost\n";
    }
    const json::value* notes = find(result, "notes");
    if (notes != nullptr && notes->is_array()) {
        for (const json::value& note : notes->get_array()) {
            out += "note                " + text_of(note) + "\n";
        }
    }
    return out;
}

// What a port asks of connections, and what came of it; sp0 only where decrypted packets met it.
std::string connections_of(const json::value& port) {
    const bool asks = get(port, "conntrack.in") != "off" || get(port, "conntrack.out") != "off";
    const uint64_t counted = get_number(port, "conntrack.established") +
                             get_number(port, "conntrack.to_kernel") +
                             get_number(port, "conntrack.refused");
    if (find(port, "conntrack") == nullptr || (!asks && counted == 0)) return {};
    const std::string rules =
        asks ? " (in " + get(port, "conntrack.in") + ", out " + get(port, "conntrack.out") + ")"
             : "";
    return get(port, "name") + ": connections" + rules + ": " + get(port, "conntrack.established") +
           " frames of established ones, " + get(port, "conntrack.to_kernel") +
           " for the kernel to see, " + get(port, "conntrack.refused") + " refused\n";
}

std::string spread_of(const json::value& port) {
    const json::value* cpus = find(port, "bypass.cpus");
    if (cpus == nullptr || !cpus->is_array() || cpus->get_array().empty()) return {};
    return get(port, "name") + ": BYPASS on CPUs " + text_of(*cpus) + ": " +
           get(port, "bypass.handed_over") + " frames handed over, taken " +
           get(port, "bypass.taken_by_cpu") + ", " + get(port, "bypass.waiting_or_lost") +
           " waiting or lost\n";
}

// Of BYPASS; what workers complete is in `show workers`.
std::string checksums_of(const json::value& port) {
    const uint64_t count = get_number(port, "partial_checksums");
    if (count == 0) return {};
    return get(port, "name") + ": " + std::to_string(count) +
           " BYPASS frames left to the kernel, which completes their TCP or UDP checksum ('ethtool "
           "-K DEVICE tx off' at the sender)\n";
}

std::string format_ports(const json::value& result) {
    Table ports({{"PORT"},
                 {"DEVICE"},
                 {"ROLE"},
                 {"QUEUES", Align::right},
                 {"MTU", Align::right},
                 {"XDP"},
                 {"SOCKETS"},
                 {"RX FRAMES", Align::right},
                 {"RX BYTES", Align::right},
                 {"TO WORKERS", Align::right},
                 {"TO PORTS", Align::right},
                 {"TO KERNEL", Align::right},
                 {"KERNEL ESP", Align::right},
                 {"KERNEL PROTECT", Align::right},
                 {"DROPPED", Align::right},
                 {"EGRESS", Align::right},
                 {"SENT", Align::right}});
    Table queues({{"PORT"}, {"QUEUE", Align::right}, {"STEERED TO WORKERS 0, 1, ..."}});
    std::string lost;
    std::string more;
    for (const json::value& port : rows_of(result)) {
        more += connections_of(port) + spread_of(port) + checksums_of(port);
        ports.add({get(port, "name"), get(port, "device"), get(port, "role"), get(port, "queues"),
                   get(port, "mtu"), get(port, "xdp_mode") + ", " + get(port, "attached"),
                   get(port, "bind_mode"), get(port, "rx_frames"), get_bytes(port, "rx_bytes"),
                   get(port, "steered"), get(port, "redirected"), get(port, "passed"),
                   get(port, "passed_esp"), get(port, "passed_protect"), get(port, "dropped"),
                   get(port, "egress_frames"), get(port, "egress_sent")});
        const json::value* matrix = find(port, "steered_by_queue_worker");
        if (matrix != nullptr && matrix->is_array()) {
            uint32_t queue = 0;
            for (const json::value& row : matrix->get_array()) {
                queues.add({get(port, "name"), std::to_string(queue++), text_of(row)});
            }
        }
        const uint64_t in_kernel =
            get_number(port, "sockets.rx_ring_full") + get_number(port, "sockets.fill_ring_empty") +
            get_number(port, "sockets.no_frame") + get_number(port, "sockets.too_big");
        if (in_kernel > 0) {
            lost += get(port, "name") +
                    ": lost before a worker saw them: " + get(port, "sockets.rx_ring_full") +
                    " receive ring full, " + get(port, "sockets.fill_ring_empty") +
                    " FILL ring empty, " + get(port, "sockets.no_frame") + " no free frame, " +
                    get(port, "sockets.too_big") + " too big\n";
        }
    }
    std::string out = ports.to_string();
    if (!queues.empty()) out += "\n" + queues.to_string();
    if (!more.empty()) out += "\n" + more;
    if (!lost.empty()) out += "\n" + lost;
    return out;
}

std::string format_workers(const json::value& result) {
    Table table({{"WORKER", Align::right},
                 {"CPU", Align::right},
                 {"SAS", Align::right},
                 {"IN FRAMES", Align::right},
                 {"IN BYTES", Align::right},
                 {"DELIVERED", Align::right},
                 {"OUT FRAMES", Align::right},
                 {"OUT BYTES", Align::right},
                 {"DELIVERED", Align::right},
                 {"FROM KERNEL", Align::right},
                 {"CHECKSUMS", Align::right},
                 {"DROPPED", Align::right},
                 {"SLEEPS", Align::right},
                 {"CPU TIME ms", Align::right}});
    for (const json::value& worker : rows_of(result)) {
        table.add({get(worker, "worker"), get(worker, "cpu"), get(worker, "sas"),
                   get(worker, "inbound.frames"), get_bytes(worker, "inbound.bytes"),
                   get(worker, "inbound.delivered"), get(worker, "outbound.frames"),
                   get_bytes(worker, "outbound.bytes"), get(worker, "outbound.delivered"),
                   get(worker, "from_kernel"), get(worker, "checksums_completed"),
                   get(worker, "dropped"), get(worker, "sleeps"), get(worker, "cpu_time_ms")});
    }
    return table.to_string();
}

std::string drops_of(const json::value& sa) {
    const json::value* drops = find(sa, "drops");
    std::string out;
    if (drops != nullptr && drops->is_object()) {
        for (const auto& [reason, count] : drops->get_object()) {
            out += (out.empty() ? "" : " ") + std::string(reason.data(), reason.size()) + "=" +
                   text_of(count);
        }
    }
    return out.empty() ? std::string(kMissing) : out;
}

std::string text_or_empty(const json::value& value, std::string_view path) {
    const json::value* found = find(value, path);
    return found == nullptr || found->is_null() ? std::string() : text_of(*found);
}

std::string owner_of(const json::value& sa) {
    const std::string state = get(sa, "state");
    if (state == "kernel") return "kernel: " + get(sa, "reason");
    return state == "active" ? "worker " + get(sa, "worker") : state;
}

std::string idle_of(const json::value& sa) {
    const json::value* idle = find(sa, "idle_s");
    if (idle == nullptr || idle->is_null()) return std::string(kMissing);
    return format_duration(get_number(sa, "idle_s"));
}

// "bytes 1000/2000": soft, then hard; only what is limited.
std::string limits_of(const json::value& sa) {
    std::string out;
    for (const std::string unit : {"bytes", "packets", "s"}) {
        const std::string soft = get(sa, "limits.soft_" + unit);
        const std::string hard = get(sa, "limits.hard_" + unit);
        if (soft == kMissing && hard == kMissing) continue;
        if (!out.empty()) out += ", ";
        out.append(unit).append(" ").append(soft).append("/").append(hard);
    }
    return out.empty() ? std::string(kMissing) : out;
}

std::string format_sas(const json::value& result) {
    Table table({{"NAME"},
                 {"DIRECTION"},
                 {"SPI"},
                 {"SOURCE"},
                 {"DESTINATION"},
                 {"SUITE"},
                 {"ESN"},
                 {"POLICY"},
                 {"OWNER"},
                 {"PACKETS", Align::right},
                 {"BYTES", Align::right},
                 {"SEQUENCE", Align::right},
                 {"IDLE", Align::right},
                 {"LIMITS"},
                 {"DROPS"}});
    std::string refused;
    for (const json::value& sa : rows_of(result)) {
        table.add({get(sa, "name"), get(sa, "direction"), get(sa, "spi"), get(sa, "source"),
                   get(sa, "destination"), get(sa, "suite"), get(sa, "esn"), get(sa, "policy"),
                   owner_of(sa), get(sa, "packets"), get_bytes(sa, "bytes"), get(sa, "sequence"),
                   idle_of(sa), limits_of(sa), drops_of(sa)});
        if (get(sa, "state") == "refused") {
            refused += get(sa, "name") + ": " + get(sa, "reason") + "\n";
        }
    }
    return refused.empty() ? table.to_string() : table.to_string() + "\n" + refused;
}

// Policies of xfrm come first; they have a direction and a priority, and may be the kernel's to
// judge. Those of the configuration follow or stand alone.
std::string format_policies(const json::value& result) {
    bool of_xfrm = false;
    bool left = false;
    for (const json::value& policy : rows_of(result)) {
        of_xfrm |= find(policy, "direction") != nullptr;
        left |= !text_or_empty(policy, "reason").empty();
    }
    std::vector<Column> columns = {{"POLICY"}, {"ACTION"}};
    if (of_xfrm) columns.insert(columns.end(), {{"DIRECTION"}, {"PRIORITY", Align::right}});
    columns.insert(columns.end(), {{"LOCAL"},
                                   {"REMOTE"},
                                   {"PROTOCOL"},
                                   {"LOCAL PORTS"},
                                   {"REMOTE PORTS"},
                                   {"MARK"},
                                   {"IF_ID", Align::right}});
    if (!of_xfrm) columns.push_back({"SAS"});
    if (left) columns.push_back({"ONLY THE KERNEL JUDGES IT"});
    Table table(std::move(columns));
    for (const json::value& policy : rows_of(result)) {
        std::vector<std::string> row = {get(policy, "name"), get(policy, "action")};
        if (of_xfrm) row.insert(row.end(), {get(policy, "direction"), get(policy, "priority")});
        row.insert(
            row.end(),
            {get(policy, "local"), get(policy, "remote"), get(policy, "protocol"),
             get(policy, "local_ports"), get(policy, "remote_ports"), get(policy, "ct_mark"),
             get_number(policy, "if_id") == 0 ? std::string(kMissing) : get(policy, "if_id")});
        if (!of_xfrm) row.push_back(get(policy, "sas"));
        if (left) row.push_back(text_or_empty(policy, "reason"));
        table.add(std::move(row));
    }
    return table.to_string();
}

std::string format_connections(const json::value& result) {
    Table table({{"IF_ID", Align::right},
                 {"POLICIES"},
                 {"IN PACKETS", Align::right},
                 {"IN BYTES", Align::right},
                 {"IN DROPPED", Align::right},
                 {"OUT PACKETS", Align::right},
                 {"OUT BYTES", Align::right}});
    for (const json::value& connection : rows_of(result)) {
        table.add({get(connection, "if_id"), get(connection, "policies"),
                   get(connection, "in_packets"), get_bytes(connection, "in_bytes"),
                   get(connection, "in_dropped"), get(connection, "out_packets"),
                   get_bytes(connection, "out_bytes")});
    }
    return table.empty() ? "no IPsec connection of the kernel's is in use\n" : table.to_string();
}

// "place: 3, other: 4"
std::string counts_of(const json::value* counts) {
    std::string out;
    if (counts == nullptr || !counts->is_object()) return out;
    for (const auto& [name, count] : counts->get_object()) {
        out += (out.empty() ? "" : ", ") + std::string(name.data(), name.size()) + ": " +
               text_of(count);
    }
    return out;
}

std::string format_drops(const json::value& result, DropRows drop_rows) {
    Table table({{"REASON"}, {"COUNT", Align::right}, {"WHERE"}, {"MEANING"}});
    size_t hidden = 0;
    for (const json::value& drop : rows_of(result)) {
        if (drop_rows == DropRows::occurred && get_number(drop, "count") == 0) {
            ++hidden;
            continue;
        }
        const std::string where = counts_of(find(drop, "where"));
        const std::string kernel = counts_of(find(drop, "kernel"));
        table.add({get(drop, "reason"), get(drop, "count"),
                   where.empty() ? std::string(kMissing) : where,
                   get(drop, "help") + (kernel.empty() ? "" : " (" + kernel + ")")});
    }
    std::string out = table.empty() ? "nothing was dropped\n" : table.to_string();
    if (hidden > 0) {
        out += "(" + std::to_string(hidden) + " reasons that did not occur are hidden: --all)\n";
    }
    return out;
}

// Containers one member per line while they nest; leaves stay on one line.
void append_pretty(const json::value& value, size_t indent, std::string& out) {
    const std::string inner(indent + 2, ' ');
    const std::string outer(indent, ' ');
    if (const json::object* object = value.if_object(); object != nullptr && !object->empty()) {
        out += "{\n";
        size_t left = object->size();
        for (const auto& [name, member] : *object) {
            out += inner + json::serialize(json::string(name)) + ": ";
            append_pretty(member, indent + 2, out);
            out += --left > 0 ? ",\n" : "\n";
        }
        out += outer + "}";
    } else if (const json::array* array = value.if_array();
               array != nullptr && !array->empty() && array->front().is_structured()) {
        out += "[\n";
        size_t left = array->size();
        for (const json::value& element : *array) {
            out += inner;
            append_pretty(element, indent + 2, out);
            out += --left > 0 ? ",\n" : "\n";
        }
        out += outer + "]";
    } else {
        out += json::serialize(value);
    }
}

}  // namespace

std::string format_bytes(uint64_t bytes) {
    constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) return std::to_string(bytes) + " B";
    double value = static_cast<double>(bytes) / 1024;
    size_t unit = 0;
    while (value >= 1023.95 && unit + 1 < kUnits.size()) {
        value /= 1024;
        ++unit;
    }
    char text[32];
    std::snprintf(text, sizeof text, "%.1f %s", value, kUnits[unit]);
    return text;
}

std::string format_table(rpc::Show show, const json::value& result, DropRows drop_rows) {
    switch (show) {
        case rpc::Show::status:
            return format_status(result);
        case rpc::Show::ports:
            return format_ports(result);
        case rpc::Show::workers:
            return format_workers(result);
        case rpc::Show::sa:
            return format_sas(result);
        case rpc::Show::policy:
            return format_policies(result);
        case rpc::Show::drops:
            return format_drops(result, drop_rows);
        case rpc::Show::connections:
            return format_connections(result);
    }
    return {};
}

std::string format_json(const json::value& result) {
    std::string out;
    append_pretty(result, 0, out);
    return out + "\n";
}

}  // namespace sallyport::ctl
